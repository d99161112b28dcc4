"""``check`` and ``verify``: what they print, what they leave, and the code they end with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import nas_config, write_model
from tiny import tiny_text
from torch import Tensor

from ffn_fusion.engines import compare
from ffn_fusion.engines.answers import Answers
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.portability.rules import ENGINES

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def child(ffn_fusion: Run, parent: Path, tmp_path: Path) -> Path:
    """Its first block has no attention, so that two engines and llama.cpp don't load it."""
    target = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", target, "--without-attention", "0,2-4", "--runs", "2-3")[0] == 0
    return target


def test_a_report_on_every_engine(ffn_fusion: Run, child: Path) -> None:
    code, out, err = ffn_fusion("check", child)
    assert (code, err) == (0, "")
    assert all(engine in out for engine in ENGINES)
    assert "too many values to unpack" in out
    assert "--fix -o FIXED" in out


def test_an_asked_engine_decides_the_code(ffn_fusion: Run, child: Path, tmp_path: Path) -> None:
    assert ffn_fusion("check", child, "--for-engine", "transformers", "--for-engine", "mlx")[0] == 0
    code, out, err = ffn_fusion("check", child, "--for-engine", "vllm", "--json")
    assert code == 10
    assert err.splitlines()[0] == f"error: {child}: can't be loaded as it is by vllm"
    assert "--fix" in err.splitlines()[1]
    (problem,) = json.loads(out)["engines"]["vllm"]["problems"]
    assert (problem["block"], problem["rule"], problem["fixable"]) == (0, "first-attention", True)
    fixed = tmp_path / "fixed"
    code, out, err = ffn_fusion("check", child, "--fix", "-o", fixed, "--for-engine", "all")
    assert code == 0, err
    assert "block 0: an attention of zeros" in out
    assert f"fixed: {fixed}" in out
    assert ffn_fusion("check", fixed, "--for-engine", "all")[0] == 0


def test_mistakes(ffn_fusion: Run, child: Path, parent: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "linear", nas_config([(2, 256), ("linear", 256)]), [(2, 256), ("linear", 256)])
    fix = ("--fix", "-o", tmp_path / "x")
    for words, expected, says in (
        ((child, "--for-engine", "onnx"), 2, "no engine 'onnx'"),
        ((child, "--fix"), 2, "go together"),
        ((child, "-o", tmp_path / "x"), 2, "go together"),
        ((parent,), 4, "a plain llama model"),
        ((tmp_path / "nothing",), 3, "no such folder"),
        ((child, *fix, "--for-engine", "mlx"), 2, "nothing to fix"),
        ((tmp_path / "linear", *fix, "--for-engine", "vllm"), 10, "vllm can't be helped, block 1"),
        ((child, "--fix", "-o", child), 8, "lie in one another"),
    ):
        code, _, err = ffn_fusion("check", *words)
        assert (code, says in err) == (expected, True), err
        assert not list(tmp_path.glob("x*"))


def test_verify(ffn_fusion: Run, child: Path, parent: Path, tmp_path: Path) -> None:
    code, out, _ = ffn_fusion("verify", child)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["files:", "weights:"]
    text = ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 64, "--context", 16)
    code, out, err = ffn_fusion("verify", child, "--parent", parent, *text)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 6
    assert "64 tokens of text" in out
    (child / "tokenizer.json").write_text("{}")
    code, out, err = ffn_fusion("verify", child, "--parent", parent, *text, "--json")
    assert code == 10
    assert "1 of 6 checks failed: files" in err
    assert json.loads(out)["ok"] is False
    assert ffn_fusion("verify", child, "--parent", parent, "--engine", "sglang")[0] == 2
    assert ffn_fusion("verify", child, "--engine-program", "python")[0] == 2
    assert ffn_fusion("verify", child, "--parent", parent, "--engine", "onnx")[0] == 2
    assert ffn_fusion("verify", tmp_path / "nothing")[0] == 10


@pytest.mark.parametrize("right", [True, False])
def test_verify_in_an_engine(
    ffn_fusion: Run, child: Path, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that's made up of transformers, and one that reads prompts the wrong way round."""

    def told(folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers:
        model, ids = load_model(folder, torch.float32), ids_NT if right else ids_NT.flip(-1)
        logprobs_NTK, ids_NTK = reference.logits(model, ids).log_softmax(-1).topk(likeliest)
        return Answers(ids_NTK, logprobs_NTK, reference.greedy(model, ids, new).argmax(-1))

    monkeypatch.setattr(compare, "ENGINES", {"vllm": told})
    text = ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 32, "--context", 16)
    code, out, err = ffn_fusion("verify", child, "--engine", "vllm", *text, "--json")
    assert code == (0 if right else 10), err
    found = json.loads(out)["checks"][-1]
    assert (found["check"], found["ok"]) == ("vllm", right)
    assert (found["figures"]["same_top_token"] == 1) is right
    assert right or "1 of 3 checks failed: vllm" in err
    (child / "config.json").write_text("{}")
    assert [line.split()[1] for line in ffn_fusion("verify", child, "--engine", "vllm")[1].splitlines()] == [
        "files:",
        "weights:",
    ]


def test_verify_without_a_tokenizer(ffn_fusion: Run, child: Path, parent: Path, tmp_path: Path) -> None:
    for path in parent.glob("*token*"):
        path.unlink()
    code, out, err = ffn_fusion("verify", child, "--parent", parent)
    assert code == 0, err
    assert "128 random tokens" in out
    assert ffn_fusion("verify", child, "--parent", parent, "--text", tiny_text(tmp_path / "t.txt"))[0] == 3
