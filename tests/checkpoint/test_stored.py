"""Checkpoints that are stored otherwise than their config.json says: read as what they are, which is what plain torch
makes of the tensors that were meant.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.errors import CheckpointError
from ffn_fusion.modeling.load import load_model
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


def refused(folder: Path, says: str, hint: str = "", opening: OpenSettings | None = None) -> str:
    """Opening is refused in one line that names the folder; returns message and hint."""
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        open_folder(folder, opening=opening)
    assert str(folder) in caught.value.message
    assert hint in caught.value.hint
    return f"{caught.value.message} {caught.value.hint}"


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


# ---- names


def wrapped(name: str) -> str:
    return f"_orig_mod.module.{name}".replace("layers.1.", "layers.1._checkpoint_wrapped_module.")


NAMINGS = {
    "compiled": wrapped,
    "data parallel": lambda name: f"module.{name}",
    "in a vision model": lambda name: f"language_model.{name}",
    "in a vision model of transformers 5": lambda name: name.replace("model.", "model.language_model.", 1),
    "without the model's own word": lambda name: name.removeprefix("model."),
    "in another module": lambda name: f"net.llm.{name}",
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_with_something_around_them(naming: str, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(), dtype="F64")
    store(made, {NAMINGS[naming](name): tensor for name, tensor in made.tensors.items()})
    checkpoint, ids = open_folder(made.folder), random_ids(made.config, 2, 9)
    assert list(checkpoint.tensors) == list(write_model(tmp_path / "plain", llama_config()).tensors)
    assert relative(run(checkpoint, ids), meant(made.config, made.tensors)) <= ROUNDING
    if naming == "without the model's own word":
        assert checkpoint.notes == ()
        assert relative(in_transformers(made.folder, ids), meant(made.config, made.tensors)) <= ROUNDING
        return
    assert "tensors are read under their family's names" in checkpoint.notes[0]
    child = built(checkpoint, tmp_path / "child")
    assert relative(in_transformers(child, ids), meant(made.config, made.tensors)) <= ROUNDING
    model = load_model(checkpoint, torch.float64)  # as transformers doesn't read it, it's made of what is read here
    with torch.inference_mode():
        assert relative(model(ids).logits, meant(made.config, made.tensors)) <= ROUNDING
    with pytest.raises(CheckpointError, match="vLLM doesn't read the folder as ffn-fusion does"):
        checkpoint.own_folder("vLLM")


def test_a_folder_that_is_as_it_should_be_has_no_notes(tmp_path: Path) -> None:
    checkpoint = open_folder(write_model(tmp_path, llama_config()).folder)
    assert checkpoint.notes == ()
    assert checkpoint.own_folder("vLLM") == tmp_path


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config())
    store(made, made.tensors | {f"module.{HEAD}": made.tensors[HEAD].clone()})
    refused(made.folder, f"tensors {HEAD} and module.{HEAD} both stand for {HEAD}")


def test_names_that_could_be_of_two_models_stay_as_they_are(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config())
    twice = {f"{side}.{name}": tensor.clone() for name, tensor in made.tensors.items() for side in ("policy", "value")}
    store(made, twice)
    refused(made.folder, f"tensor {EMBEDDING} is missing")


# ---- numbers


@pytest.mark.parametrize("config_says", ["how many are left", "how many there were"])
def test_blocks_with_gaps_are_numbered_anew_on_request(config_says: str, tmp_path: Path) -> None:
    left = [0, 1, 3, 5]
    config = llama_config(num_hidden_layers=len(left))
    made = write_model(tmp_path / "m", config, dtype="F64")
    tensors = {
        re.sub(r"layers\.(\d+)\.", lambda found: f"layers.{left[int(found[1])]}.", name): tensor
        for name, tensor in made.tensors.items()
    }
    store(made, tensors)
    if config_says == "how many there were":
        (made.folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    refused(made.folder, "blocks 2, 4 aren't stored; 4 others are, up to 5", "--renumber")
    checkpoint, ids = open_folder(made.folder, opening=OpenSettings(renumber=True)), random_ids(config, 2, 9)
    assert relative(run(checkpoint, ids), meant(config, made.tensors)) <= ROUNDING
    assert checkpoint.notes == ("blocks are numbered anew, without 2, 4",)
    child = built(checkpoint, tmp_path / "child")
    assert json.loads((child / "config.json").read_text())["num_hidden_layers"] == 4
    assert relative(in_transformers(child, ids), meant(config, made.tensors)) <= ROUNDING


def test_more_blocks_than_the_config_has_are_not_renumbered(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(num_hidden_layers=4))
    tensors = {name.replace("layers.2.", "layers.7."): tensor for name, tensor in made.tensors.items()}
    (made.folder / "config.json").write_text(json.dumps({**made.config, "num_hidden_layers": 2}))
    store(made, tensors)
    assert "layers.3" in refused(made.folder, "isn't part of a llama model", opening=OpenSettings(renumber=True))
    (made.folder / "config.json").write_text(json.dumps({**made.config, "num_hidden_layers": 5}))
    refused(made.folder, "up to number 7, and config.json has 5", opening=OpenSettings(renumber=True))


# ---- sizes


def test_widths_and_kv_heads_that_differ_by_block(tmp_path: Path) -> None:
    blocks = [(2, 48), (4, 40), (2, 64), (1, 48)]
    made = write_model(tmp_path / "m", llama_config(), blocks, dtype="F64")
    checkpoint, ids = open_folder(made.folder), random_ids(made.config, 2, 9)
    assert [(b.attention.kv_heads, b.ffn.width) for b in checkpoint.spec.blocks if b.attention and b.ffn] == blocks
    assert len(checkpoint.notes) == 2
    child = open_folder(build(checkpoint, checkpoint.blueprint(), tmp_path / "child", width_multiple=1))
    assert child.spec.blocks == checkpoint.spec.blocks
    nas = nas_config(blocks)
    same = write_model(tmp_path / "nas", nas, blocks, dtype="F64")
    assert relative(run(checkpoint, ids), in_transformers(same.folder, ids)) <= ROUNDING
    assert relative(in_transformers(child.folder, ids), in_transformers(same.folder, ids)) <= 1e-10


def test_widths_that_all_differ_from_the_config_are_refused(tmp_path: Path) -> None:
    """Then the config may be another model's; and so may a block whose own tensors disagree."""
    made = write_model(tmp_path / "m", llama_config(intermediate_size=64), [(2, 48)] * 4)
    refused(made.folder, "is [48, 32], not [64, 32]")
    blocks = [(2, 48), (2, 40), (2, 48), (2, 48)]
    odd = write_model(tmp_path / "odd", llama_config(), blocks)
    store(odd, odd.tensors | {"model.layers.1.mlp.up_proj.weight": torch.zeros(41, 32)})
    refused(odd.folder, "is [40, 32], not [48, 32]")


# ---- links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of links to a model that is elsewhere."""
    made = write_model(tmp_path / "real", llama_config(), shards=3, dtype="F64")
    (made.folder / "tokenizer.json").write_text("{}")
    (made.folder / "generation_config.json").write_text("{}")
    folder = tmp_path / "links"
    folder.mkdir()
    for path in made.folder.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_a_folder_of_links_names_the_real_one(linked: Path) -> None:
    hint = refused(linked, "leads out of its folder", "--trust-links")
    assert str(linked.with_name("real")) in hint


def test_links_that_are_trusted(linked: Path, tmp_path: Path) -> None:
    checkpoint = open_folder(linked, opening=OpenSettings(trust_links=True))
    child = build(checkpoint, checkpoint.blueprint(), tmp_path / "child", width_multiple=1)
    assert (child / "tokenizer.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in child.iterdir())
    real = open_folder(linked.with_name("real"))
    assert all(torch.equal(open_folder(child).read(name), real.read(name)) for name in real.tensors)
