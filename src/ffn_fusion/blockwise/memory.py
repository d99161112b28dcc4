"""How much memory there is, and how much this process has."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ffn_fusion.processes import neighbours


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device; on a Linux host that counts the page cache, which gives way."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * neighbours()  # a GPU isn't shared with the other processes
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def used_memory() -> int:
    """Bytes of memory that this process holds now (its resident set); 0 where the system doesn't say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0
