"""Killing a sweep at one of its ticks and going on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

States = dict[str, Tensor]
OnProgress = Callable[[int, int], None]


class Killed(BaseException):
    """What ends a sweep in the middle, as a signal would."""


def quiet(done: int, total: int) -> None:
    """Report nothing."""


def assert_same_after_kills(run: Callable[[Path, OnProgress], States], folder: Path, ticks: Iterable[int]) -> None:
    """Assert that ``run(folder, on_progress)``, killed at each of these ticks and run again, gives the same bits."""
    want = run(folder / "whole", quiet)
    for at in ticks:
        left = at

        def kill(done: int, total: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        with pytest.raises(Killed):
            run(folder / str(at), kill)
        found = run(folder / str(at), quiet)
        assert all(torch.equal(found[name], state) for name, state in want.items()), at
