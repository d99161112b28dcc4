"""``repair``: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import tiny_text

Run = Callable[..., tuple[int, str, str]]


def test_on_the_command_line(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    text = ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 512, "--context", 32)
    child = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", child, "--without-attention", "2-4", "--runs", "2-3")[0] == 0
    code, out, err = ffn_fusion("repair", child, "--parent", parent, "-o", tmp_path / "better", *text)
    assert code == 0, err
    assert "on held-out tokens" in " ".join(out.split())
    assert "Repaired" in (tmp_path / "better" / "README.md").read_text()
    assert not list(tmp_path.glob(".better*"))
    mistakes: list[tuple[tuple[Any, ...], int, str]] = [
        ((child, "--parent", parent, "-o", tmp_path / "better", *text), 8, "exists"),
        ((child, "--parent", parent, "-o", tmp_path / "n", *text, "--weighting", "heavy"), 2, "--weighting"),
        ((child, "--parent", parent, "-o", tmp_path / "n", *text[:3], 64, "--context", 32), 7, "too few"),
        ((parent, "--parent", parent, "-o", tmp_path / "n", *text), 5, "blueprint"),
        ((child, "--parent", parent, "-o", tmp_path / "n", *text, "--lambdas", "0.1,x"), 2, "--lambdas"),
        (
            (child, "--parent", parent, "-o", tmp_path / "n", *text, "--memory", "1MiB"),
            2,
            "too little: this repair needs",
        ),
    ]
    for words, expected, says in mistakes:
        code, out, err = ffn_fusion("repair", *words)
        assert (code, says in err) == (expected, True), err
        assert not (tmp_path / "n").exists()
        assert not list(tmp_path.glob(".n*"))


def test_dry_run(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    text = ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 512, "--context", 32)
    words = ("--without-attention", "2-4", "--runs", "2-3", "-o", tmp_path / "child")
    code, out, err = ffn_fusion("fuse", parent, *words, *text, "--dry-run", "--json")
    assert (code, json.loads(out)["repair"]["tokens"]) == (0, 512), err
    assert ffn_fusion("fuse", parent, *words)[0] == 0
    better = ("repair", tmp_path / "child", "--parent", parent, "-o", tmp_path / "better", *text)
    code, out, err = ffn_fusion(*better, "--dry-run", "--json")
    whys = ["fused", "attention dropped", "after a change", "after a change"]
    assert (code, [place["why"] for place in json.loads(out)["places"]]) == (0, whys), err
    assert "dry run" in ffn_fusion(*better, "--dry-run")[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child", "parent", "t.txt"]


def test_fuse_and_build_repair_where_there_is_text(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    text = ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 512, "--context", 32)
    words = ("--without-attention", "2-4", "--runs", "2-3")
    code, out, err = ffn_fusion("fuse", parent, *words, "-o", tmp_path / "a", *text, "--json")
    assert code == 0, err
    record = json.loads(out)["repair"]
    assert record == json.loads((tmp_path / "a" / "repairs.json").read_text())
    assert [sorted(gain) for gain in record["gains"]] == [["pruned", "repaired", "text", "tokens", "unrepaired"]]
    blueprint = ("--blueprint", tmp_path / "a" / "blueprint.json")
    code, out, err = ffn_fusion("build", parent, *blueprint, "-o", tmp_path / "b", *text)
    assert code == 0, err
    assert "KL to the parent on" in out
    for name in ("a", "b"):
        assert "Repaired" in (tmp_path / name / "README.md").read_text()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    for name, more in (("c", ()), ("d", (*text, "--no-repair"))):
        code, out, err = ffn_fusion("fuse", parent, *words, "-o", tmp_path / name, *more)
        assert (code, "the child is unrepaired" in err) == (0, True), err
        assert "Unrepaired" in (tmp_path / name / "README.md").read_text()
    assert not list(tmp_path.glob(".*"))
