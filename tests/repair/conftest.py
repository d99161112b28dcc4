from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model

from ffn_fusion.cli import main as cli


@pytest.fixture
def ffn_fusion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line: (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ffn-fusion", *map(str, words)])
        capsys.readouterr()
        code = cli._guarded()
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "parent").folder
