"""Children in their family's own form in vLLM, by its own classes of that family, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families.cases import write_family
from tiny import VOCABULARY, write_tokenizer
from vllm_engine import ask, needs_vllm

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.engines.compare import TOLERANCE, compare
from ffn_fusion.engines.vllm import Asked, Said
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.surgery.build import build

pytestmark = [pytest.mark.engines, needs_vllm]

NEW = 8
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 384}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 64},
    "gemma": {"head_dim": 64, "tie_word_embeddings": True},
    "gpt2": {"n_inner": None, "tie_word_embeddings": True},
    "opt": {"ffn_dim": 384, "word_embed_proj_dim": 256, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "tie_word_embeddings": True},
}
IDS = torch.arange(48).view(2, 24) * 7 % VOCABULARY


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first attention is gone, too; two FFNs are fused where the family's can be."""
    root = tmp_path_factory.mktemp("families")
    made = {}
    for name, changes in FAMILIES.items():
        write_family(root / name, {"model_type": name, **changes, **SIZES})
        parent = open_folder(root / name)
        blueprint = parent.blueprint().apply((0, 2, 3), [] if name == "gemma2" else [(2, 3)])
        made[name] = build(parent, blueprint, root / f"{name}-child", width_multiple=1)
        write_tokenizer(made[name])
    return made


@pytest.fixture(scope="module")
def said(children: dict[str, Path]) -> dict[str, Said]:
    asked = {name: Asked(str(folder), IDS.tolist(), NEW, VOCABULARY) for name, folder in children.items()}
    return ask(asked, {"trust_remote_code": False, "max_model_len": 64, "max_num_seqs": 2})


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_text(children: dict[str, Path], said: dict[str, Said], name: str) -> None:
    assert not said[name].error
    model = load_model(children[name], torch.float32)
    found = compare(said[name].told(), reference.logits(model, IDS), reference.greedy(model, IDS, NEW))
    assert found.error < TOLERANCE
    assert found.same_text == 1
