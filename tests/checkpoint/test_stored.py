"""Checkpoints that are stored otherwise than their config.json says: read as what they are, which is what plain torch
makes of the tensors that were meant.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Made, llama_config, random_ids, write_model
from reference import Reference, identity_steps
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.surgery.build import build

ROUNDING = 2**-20
"""Of logits whose rotary tables are float32 (24 bits), as transformers' are, through 4 blocks (2 bits) with norms and
matrices of gain 1.5 (2 bits)."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def store(made: Made, tensors: dict[str, Tensor]) -> Path:
    """Write these tensors in place of the model's own."""
    save_file(tensors, made.folder / "model.safetensors", metadata={"format": "pt"})
    return made.folder


def meant(config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Logits of these weights, from the equations."""
    return Reference(config, tensors).logits(random_ids(config, 2, 9), identity_steps(config["num_hidden_layers"]))


@torch.inference_mode()
def run(checkpoint: Checkpoint, ids_NT: Tensor) -> Tensor:
    """Logits as the analysis computes them, in float64."""
    stack = Stack(checkpoint, dtype=torch.float64)
    x = stack.embed(ids_NT)
    for i in range(len(checkpoint.spec.blocks)):
        block = stack.block(i)
        x = x + block.attention(x) if checkpoint.spec.blocks[i].attention else x
        x = x + block.ffn(x) if checkpoint.spec.blocks[i].ffn else x
    return stack.logits(x)


@torch.inference_mode()
def in_transformers(folder: Path, ids_NT: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, trust_remote_code=False).eval()
    logits: Tensor = model(ids_NT).logits
    return logits


def built(checkpoint: Checkpoint, folder: Path) -> Path:
    """Its child that keeps everything."""
    return build(checkpoint, checkpoint.blueprint(), folder)


# ---- the head of a model that says it's tied


def test_a_tied_head_that_differs_is_used_and_the_child_is_untied(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(tie_word_embeddings=True), dtype="F64")
    head = {HEAD: torch.randn(made.tensors[EMBEDDING].shape, dtype=torch.float64)}
    folder, ids = store(made, made.tensors | head), random_ids(made.config, 2, 9)
    checkpoint = open_folder(folder)
    assert not checkpoint.spec.tied
    want = meant(made.config | {"tie_word_embeddings": False}, made.tensors | head)
    assert relative(run(checkpoint, ids), want) <= ROUNDING
    assert relative(in_transformers(folder, ids), want) <= ROUNDING
    child = built(checkpoint, tmp_path / "child")
    assert json.loads((child / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(open_folder(child).read(HEAD), head[HEAD])
    assert relative(in_transformers(child, ids), want) <= ROUNDING


@pytest.mark.parametrize("stored", ["both", "head alone"])
def test_a_tied_head_that_is_the_embedding_is_dropped(stored: str, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(tie_word_embeddings=True), dtype="F64")
    tensors = made.tensors | {HEAD: made.tensors[EMBEDDING].clone()}
    if stored == "head alone":
        del tensors[EMBEDDING]
    folder, ids = store(made, tensors), random_ids(made.config, 2, 9)
    checkpoint = open_folder(folder)
    assert checkpoint.spec.tied
    assert set(checkpoint.tensors) == set(made.tensors)
    assert relative(run(checkpoint, ids), meant(made.config, made.tensors)) <= ROUNDING
    child = built(checkpoint, tmp_path / "child")
    assert HEAD not in open_folder(child).tensors
    assert relative(in_transformers(child, ids), meant(made.config, made.tensors)) <= ROUNDING


def test_the_same_where_a_tied_family_is_rewritten(tmp_path: Path) -> None:
    config = llama_config(tie_word_embeddings=True, model_type="granite", logits_scaling=2.0, embedding_multiplier=3.0)
    made = write_model(tmp_path / "m", config, dtype="F64")
    embedding, ids = made.tensors[EMBEDDING], random_ids(config, 2, 9)
    for head in (embedding.clone(), torch.randn(embedding.shape, dtype=torch.float64)):
        folder = store(made, made.tensors | {HEAD: head})
        assert relative(run(open_folder(folder), ids), in_transformers(folder, ids)) <= ROUNDING


def test_a_tied_head_of_another_dtype_is_the_models_own(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(tie_word_embeddings=True), dtype="BF16")
    store(made, made.tensors | {HEAD: made.tensors[EMBEDDING].float()})
    assert open_folder(made.folder).tensors[HEAD].dtype == "F32"
