"""Tasks in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import toy_task


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """``toy_task.write_task`` into the folder ``tasks``."""
    return partial(toy_task.write_task, tmp_path / "tasks")
