"""What a process has to work with: memory, page cache and disk. Work that doesn't fit is refused in one line."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ffn_fusion.errors import OutputError, UsageError
from ffn_fusion.processes import neighbours
from ffn_fusion.units import gib

_DEFAULT_SHARE = 0.5  # of the free memory, where no limit is given
_SLACK = 1.1  # what allocators and buffers add


@dataclass(frozen=True)
class Room:
    """What one process has on this machine, in bytes.

    Args:
        used: memory that the process holds already.
        free: free memory of the device.
        cache: page cache that can be spared for files.
        disk: free disk space.
        limit: memory that the process may use, what it holds already included; None: half of the free memory.
    """

    used: int
    free: int
    cache: int
    disk: int
    limit: int | None = None

    @classmethod
    def here(cls, device: torch.device, folder: Path | None, limit: int | None = None) -> Room:
        """Return the room on this machine, for files in ``folder`` (None: a temporary one)."""
        on_host = device.type != "cuda"
        host = free_memory(torch.device("cpu")) // neighbours()
        place = (folder or Path(tempfile.gettempdir())).absolute()
        return cls(
            used=used_memory() if on_host else 0,
            free=host if on_host else free_memory(device) // neighbours(),
            cache=host // 2,
            disk=shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free,
            limit=limit,
        )

    @property
    def budget(self) -> int:
        """Memory that the process may use."""
        return self.limit if self.limit is not None else int(self.used + _DEFAULT_SHARE * self.free)

    def peak(self, tensors: float) -> int:
        """Return the memory of the process at its peak, when it holds this many bytes of tensors beside all else."""
        return int(self.used + _SLACK * tensors)

    def too_little(self, what: str, peak: int, why: str, hint: str) -> UsageError:
        """Return the error of work whose peak is above the budget."""
        return UsageError(f"{gib(self.budget)} of memory is too little: {what} needs {gib(peak)}, {why}", hint)

    def disk_full(self, what: str, needed: int, hint: str) -> OutputError:
        """Return the error of states that need more than the disk has."""
        return OutputError(f"{what} take {gib(needed)}, and {gib(self.disk)} are free on the disk", hint)


def free_memory(device: torch.device) -> int:
    """Return the free memory of the device in bytes; on a Linux host that includes the page cache, which gives way."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * neighbours()  # a GPU isn't shared with the other processes
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def used_memory() -> int:
    """Return the memory that this process holds now (its resident set) in bytes; 0 where the system doesn't say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0
