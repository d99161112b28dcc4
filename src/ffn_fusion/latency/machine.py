"""What a figure was measured on, for people to read beside it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: torch.device | str = "cpu") -> str:
    """The processor and what the process may use of it; the GPU, where that is what computes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, f": {name}").split(":", 1)[1].strip()
    return f"{name}, {cores()} cores"


def core_numbers() -> list[int]:
    """Cores that this process may use, by their numbers."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many."""
    return len(core_numbers())
