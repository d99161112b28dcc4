"""Children in their family's own form in vLLM, by its own classes of that family, against transformers."""

from __future__ import annotations

from collections.abc import Iterable
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
from ffn_fusion.portability.check import check
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
WIDE: dict[str, dict[str, Any]] = {"llama": {"attention_bias": True}, "qwen2": {}}
"""Families of which two blocks are put side by side: that block's attention has other numbers of heads."""
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3 with windows": (
        "leaves windows out of Qwen3",
        {
            "model_type": "qwen3",
            "head_dim": 64,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
    ),
    "smollm3": ("isn't known to run this family", {"model_type": "smollm3"}),
}
IDS = torch.arange(48).view(2, 24) * 7 % VOCABULARY


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first attention is gone, too; two FFNs are fused where the family's can be."""
    root = tmp_path_factory.mktemp("families")
    made = {}
    models = {name: {"model_type": name} | changes for name, changes in FAMILIES.items()}
    models |= {name: {"model_type": name} | changes for name, changes in WIDE.items()}
    for name, case in (models | {name: case for name, (_, case) in REFUSED.items()}).items():
        write_family(root / name, case | SIZES)
        parent = open_folder(root / name)
        if name in WIDE:
            blueprint = parent.blueprint().apply((0,), side_by_side=[(2, 3)])
        else:
            blueprint = parent.blueprint().apply((0, 2, 3), [] if name == "gemma2" else [(2, 3)])
        made[name] = build(parent, blueprint, root / f"{name}-child", width_multiple=1)
        write_tokenizer(made[name])
    return made


@pytest.fixture(scope="module")
def said(children: dict[str, Path]) -> dict[str, Said]:
    return answers(children, children)


def answers(children: dict[str, Path], names: Iterable[str], **options: int) -> dict[str, Said]:
    asked = {name: Asked(str(children[name]), IDS.tolist(), NEW, VOCABULARY) for name in names}
    return ask(asked, {"trust_remote_code": False, "max_model_len": 64, "max_num_seqs": 2, **options})


def check_same(said: Said, child: Path) -> None:
    assert not said.error
    model = load_model(child, torch.float32)
    found = compare(said.told(), reference.logits(model, IDS), reference.greedy(model, IDS, NEW))
    assert found.error < TOLERANCE
    assert found.same_text == 1


@pytest.mark.parametrize("name", [*FAMILIES, *WIDE])
def test_logits_and_text(children: dict[str, Path], said: dict[str, Said], name: str) -> None:
    check_same(said[name], children[name])
    (row,) = check(open_folder(children[name]), ["vllm"])
    assert row.verdict == "loads"


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused(children: dict[str, Path], said: dict[str, Said], name: str) -> None:
    assert REFUSED[name][0] in said[name].error
    (row,) = check(open_folder(children[name]), ["vllm"])
    assert REFUSED[name][0] in row.problems[0].reason


def test_tensor_parallel(children: dict[str, Path], said: dict[str, Said]) -> None:
    """Two processes, each with half the heads and half of every FFN's channels."""
    for name, two in answers(children, ["qwen3", "gemma", "llama"], tensor_parallel_size=2).items():
        check_same(two, children[name])
        assert torch.equal(two.told().new_NS, said[name].told().new_NS)
