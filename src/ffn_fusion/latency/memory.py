"""Peak memory while something runs: of this process on a CPU, of PyTorch's tensors on a GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_beyond(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak memory of ``work`` in bytes beyond what was in use before; None if the system doesn't tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # what was freed, and would be used again unseen
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        work()
        return None
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def weight_memory(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, each counted once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    return int(found[1]) << 10 if found else 0
