"""The rules about llama.cpp, run in it: what breaks them fails there or is wrong, what keeps to them is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_cpp import ask, needs_llama_cpp
from makers import LLAMA3_ROPE, Blocks, nas_config, random_ids, write_model
from tiny import write_tokenizer

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.engines.compare import differences
from ffn_fusion.errors import CheckError
from ffn_fusion.export import gguf as exporter
from ffn_fusion.gguf.write import write_gguf
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.portability.check import check, fix

pytestmark = [pytest.mark.engines, needs_llama_cpp]
VOCABULARY = 259


def made(folder: Path, blocks: Blocks, **changes: Any) -> Checkpoint:
    """A child as wide as llama.cpp's kernels like, with a tokenizer of bytes and one merge."""
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "hidden_size": 256}
    config = nas_config(blocks, **sizes, **changes)
    write_model(folder, config, blocks)
    write_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["he"], tokenizer["model"]["merges"] = 258, [["h", "e"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return open_folder(folder)


def difference(checkpoint: Checkpoint, folder: Path) -> float | None:
    """Relative difference of llama.cpp's logits to transformers'; None where it doesn't get that far."""
    ids_NT = random_ids(dict(checkpoint.spec.config), 1, 12)
    want_NTV = reference.logits(load_model(folder, torch.float32), ids_NT)
    target = checkpoint.folder.with_suffix(".gguf")
    write_gguf(exporter.plan_gguf(checkpoint, pre_tokenizer="gpt-2"), target)
    try:
        have = ask(target, ids_NT[0].tolist(), 1, VOCABULARY)
    except CheckError:
        return None
    return float(differences(have, want_NTV).norm() / want_NTV.norm())


def rules(checkpoint: Checkpoint) -> set[str]:
    (row,) = check(checkpoint, ["llama.cpp"])
    return {problem.rule for problem in row.problems}


@pytest.mark.parametrize(
    ("blocks", "changes"),
    [
        ([(2, 256), (None, 512), (None, None), (2, 256), (None, 256)], {}),
        ([(2, 40), (None, 300), (2, 48)], {"rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": True}),
        ([("linear", 256), (2, 256), ("linear", 512)], {}),
        ([(2, 256), (None, 512), (2, 256)], {"head_dim": 128, "attention_bias": True}),
        ([(1, 256), (4, 512), (2, 256)], {"mlp_bias": True, "hidden_act": "swish"}),
    ],
)
def test_what_keeps_to_the_rules_is_right(blocks: Blocks, changes: dict[str, Any], tmp_path: Path) -> None:
    child = made(tmp_path / "child", blocks, **changes)
    assert rules(child) == set()
    found = difference(child, child.folder)
    assert found is not None
    assert found < 1e-5


@pytest.mark.parametrize(
    ("blocks", "rule", "wrong"),
    [
        ([(None, 256), (2, 512)], "first-attention", False),
        ([(None, None), (2, 256)], "empty-ends", False),
        ([(2, 256), (None, None)], "empty-ends", False),
        ([(2, 256), (2, None), (2, 256)], "attention-without-ffn", True),
        ([(2, None), (None, 300), (None, 512)], "attention-without-ffn", True),
    ],
)
def test_what_breaks_a_rule_fails_until_its_fixed(
    blocks: Blocks, rule: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = made(tmp_path / "child", blocks)
    assert rules(child) == {rule}
    fixed, _ = fix(child, tmp_path / "fixed", ["llama.cpp"])
    found = difference(fixed, child.folder)
    assert found is not None
    assert found < 1e-5
    monkeypatch.setattr(exporter, "check_loadable", lambda spec: None)  # which refuses to write it
    found = difference(child, child.folder)
    assert found is not None if wrong else found is None
    assert found is None or found > 0.1


def test_another_activation_is_silently_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = made(tmp_path / "child", [(2, 256), (None, 512), (4, 256)], hidden_act="gelu")
    assert rules(child) == {"activation"}
    monkeypatch.setattr(exporter, "check_loadable", lambda spec: None)
    found = difference(child, child.folder)
    assert found is not None
    assert found > 0.01
