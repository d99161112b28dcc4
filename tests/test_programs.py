"""Programs of other projects that a signal ends: the message names the signal and what it means."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from ffn_fusion.errors import CheckError
from ffn_fusion.programs import check_signal


@pytest.mark.parametrize(
    ("number", "says", "hint"),
    [
        (signal.SIGILL, "SIGILL: it met an instruction that this processor refuses", "without native tuning"),
        (signal.SIGKILL, "SIGKILL: something killed it, probably the system for want of memory", "memory"),
        (signal.SIGSEGV, "SIGSEGV: it reached for memory", "another version"),
        (signal.SIGUSR1, "SIGUSR1", "again"),
        (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}", "again"),
    ],
)
def test_a_signal_is_named_with_its_meaning(number: int, says: str, hint: str) -> None:
    kill = f"import os; os.kill(os.getpid(), {int(number)})"
    status = subprocess.run([sys.executable, "-c", kill], check=False).returncode
    with pytest.raises(CheckError) as found:
        check_signal("engine", status)
    assert str(found.value).startswith(f"engine was ended by {says}")
    assert hint in found.value.hint


@pytest.mark.parametrize("status", [0, 1, 132, None])
def test_without_a_signal_nothing_is_said(status: int | None) -> None:
    check_signal("engine", status)
