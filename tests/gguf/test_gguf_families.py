"""A GGUF file of a family opens as the checkpoint of that family does: the same sizes, tensors and logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_maker import TOKENS, make_family, make_llama, write_gguf
from real_model import HELD_OUT, QWEN, needs_qwen
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.build import build

IDS = torch.arange(2, 82).reshape(2, 40) % len(TOKENS)
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 8.0,
}
GRANITE = {
    "granite.embedding_scale": 12.0,
    "granite.residual_scale": 0.22,
    "granite.attention.scale": 0.3,
    "granite.logit_scale": 8.0,
}
SHORT, LONG = [1.0 + i / 8 for i in range(8)], [1.5 + i / 4 for i in range(8)]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}
ORIGINAL = {"original_max_position_embeddings": 128}
FACTORS = {"rope_factors_short.weight": np.float32(SHORT), "rope_factors_long.weight": np.float32(LONG)}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": None}, {"arch": "llama"}, {}),
    "qwen2": ("qwen2", {}, {"arch": "qwen2", "pre": "qwen2", "interleave": False}, {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}, {"arch": "qwen2", "interleave": False}, {}),
    "phi3": (
        "phi3",
        {"sliding_window": None},
        {"arch": "phi3", "interleave": False},
        {"phi3.attention.sliding_window": 0},
    ),
    "phi3, longrope": (
        "phi3",
        {"sliding_window": None, "rope_parameters": LONGROPE, **ORIGINAL},
        {"arch": "phi3", "interleave": False, "tensors": FACTORS},
        {
            "phi3.rope.scaling.original_context_length": 128,
            "phi3.rope.scaling.attn_factor": float(np.sqrt(1 + np.log(2) / np.log(128))),
        },
    ),
    "qwen3": (
        "qwen3",
        {"head_dim": 32},
        {"arch": "qwen3", "pre": "qwen2", "interleave": False},
        {"qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}, {"arch": "smollm3"}, {}),
    "gemma": (
        "gemma",
        {"head_dim": 32, "tie_word_embeddings": True},
        {"arch": "gemma", "interleave": False, "norms_plus": 1.0},
        {"gemma.attention.key_length": 32, "gemma.attention.value_length": 32},
    ),
    "granite": ("granite", MULTIPLIERS, {"arch": "granite", "pre": "refact"}, GRANITE),
    "granite, tied and biased": (
        "granite",
        {**MULTIPLIERS, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"arch": "granite"},
        GRANITE,
    ),
}
"""Family, changes of its config, how it's written, and metadata of its own."""


@pytest.mark.parametrize("name", CASES)
def test_opens_as_the_checkpoint_does(tmp_path: Path, name: str) -> None:
    family, changes, how, values = CASES[name]
    model = make_family(family, **changes)
    model.save_pretrained(tmp_path / "hf")
    file = write_gguf(tmp_path / "m.gguf", model, values=values, **how)
    found, expected = open_model(file, cache=tmp_path / "cache"), open_folder(tmp_path / "hf")
    assert replace(found.spec, config={}) == replace(expected.spec, config={})
    assert list(found.tensors) == list(expected.tensors)
    for tensor in expected.tensors:  # a norm's scale plus 1 is rounded once, in float32
        bound = torch.finfo(torch.float32).eps if how.get("norms_plus") and "norm" in tensor else 0.0
        torch.testing.assert_close(found.read(tensor), expected.read(tensor), rtol=0, atol=bound)
    loaded: Any = AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.float32)
    assert type(loaded) is type(model) or name == "mistral"
    child = build(found, found.blueprint(), tmp_path / "child", width_multiple=1)
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        torch.testing.assert_close(loaded(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
        fused: Any = AutoModelForCausalLM.from_pretrained(child, dtype=torch.float32)
        torch.testing.assert_close(fused(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "how", "values", "error", "says"),
    [
        ("qwen2", {"arch": "qwen2"}, {"qwen2.attention.sliding_window": 64}, FamilyError, "sliding-window"),
        ("granite", {"arch": "granite"}, {}, CheckpointError, "attention.scale is missing"),
        ("qwen2", {"arch": "qwen2moe"}, {}, FamilyError, "'qwen2moe' isn't read"),
        (
            "phi3",
            {"arch": "phi3", "tensors": {"rope_factors_long.weight": np.float32(LONG)}},
            {"phi3.rope.scaling.original_context_length": 128},
            CheckpointError,
            "rope_factors_short.weight is missing",
        ),
    ],
)
def test_what_cannot_be_read_says_why(
    tmp_path: Path, family: str, how: dict[str, Any], values: dict[str, Any], error: type[Exception], says: str
) -> None:
    file = write_gguf(tmp_path / "m.gguf", make_family(family), values=values, **how)
    with pytest.raises(error, match=says):
        open_model(file, cache=tmp_path / "cache")


def test_qwen_puts_texts_into_unicodes_composed_form(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", make_llama(), pre="qwen2")
    tokenizer = AutoTokenizer.from_pretrained(open_model(file, cache=tmp_path / "cache").folder)
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]


@pytest.mark.slow
@needs_qwen
def test_the_real_qwen_is_what_transformers_reads() -> None:
    checkpoint = open_model(QWEN)
    theirs = AutoModelForCausalLM.from_pretrained(QWEN.parent, gguf_file=QWEN.name, dtype=torch.float32)
    state = theirs.state_dict()
    assert set(checkpoint.tensors) == set(state)
    assert all(torch.equal(checkpoint.read(name), state[name]) for name in checkpoint.tensors)
    ours = AutoTokenizer.from_pretrained(checkpoint.folder)
    reference = AutoTokenizer.from_pretrained(QWEN.parent, gguf_file=QWEN.name)
    for path in sorted(HELD_OUT.iterdir()):
        text = path.read_text(encoding="utf-8")[:50_000]
        assert ours(text)["input_ids"] == reference(text)["input_ids"]
