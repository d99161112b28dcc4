"""``repair``: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import tiny_text

Run = Callable[..., tuple[int, str, str]]


def test_on_the_command_line(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    text = ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 512, "--context", 32)
    child = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", child, "--drop-attention", "2-4", "--runs", "2-3")[0] == 0
    code, out, err = ffn_fusion("repair", child, "--parent", parent, "-o", tmp_path / "better", *text)
    assert code == 0, err
    assert "held out" in out
    assert "Repaired" in (tmp_path / "better" / "README.md").read_text()
    assert not list(tmp_path.glob(".better*"))
    mistakes: list[tuple[tuple[Any, ...], int, str]] = [
        ((child, "--parent", parent, "-o", tmp_path / "better", *text), 8, "exists"),
        ((child, "--parent", parent, "-o", tmp_path / "n", *text, "--weighting", "heavy"), 2, "--weighting"),
        ((child, "--parent", parent, "-o", tmp_path / "n", *text[:3], 64, "--context", 32), 7, "too few"),
        ((parent, "--parent", parent, "-o", tmp_path / "n", *text), 5, "blueprint"),
    ]
    for words, expected, says in mistakes:
        code, out, err = ffn_fusion("repair", *words)
        assert (code, says in err) == (expected, True), err
        assert not (tmp_path / "n").exists()
        assert not list(tmp_path.glob(".n*"))
