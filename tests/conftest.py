"""Shared fixtures: hypothesis settings that suit a shared machine, and transformers that knows children."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile(
    "ffn_fusion",
    deadline=None,
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ffn_fusion")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models: threads would spend their time waiting for one another on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def figures_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with empty figures, for tests of something else: those of one report take seconds to lay out and draw."""
    from matplotlib.figure import Figure

    def save_nothing(figure: Figure, file: IO[str], **_: object) -> None:
        file.write("<svg ></svg>")

    monkeypatch.setattr(Figure, "savefig", save_nothing)


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    from ffn_fusion.registration import register

    register()
