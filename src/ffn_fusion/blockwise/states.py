"""The hidden states of all variants between two blocks, kept in memory or in files that survive the process.

Shapes: N windows, T tokens, D hidden; a slot is one tensor [N, T, D], named by its variant and a number (an edit in
progress may carry several). States are read and written a few windows at a time, block by block: a read returns what
was written at the block before.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ffn_fusion.errors import OutputError

Slot = tuple[str, int]
_SYNC_SECONDS = 10.0
"""States are synced after blocks that take longer, so that a power cut doesn't cost the whole sweep."""


class States(Protocol):
    """The states of all variants between two blocks."""

    def read(self, slot: Slot, windows: slice, tokens: slice = slice(None)) -> Tensor:
        """Return the state [n, t, D] as it was written at the block before."""

    def write(self, slot: Slot, windows: slice, value: Tensor) -> None:
        """Write what the slot holds after this block; windows in any order, each once."""

    def count(self, name: str) -> int:
        """Return the number of slots of this name that can be read."""

    def turn(self, seconds: float = 0.0) -> None:
        """Finish a block that took ``seconds``: what was written can be read now, all other slots are gone."""

    def stamp(self) -> dict[str, Any]:
        """Return what ``restore`` needs to resume from here (JSON)."""

    def restore(self, stamp: dict[str, Any]) -> bool:
        """Resume from there; return False if the states are not what they were."""


class MemoryStates:
    """States as tensors on the device they are computed on; they do not survive the process."""

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._slots: dict[Slot, Tensor] = {}
        self._written: set[Slot] = set()

    def read(self, slot: Slot, windows: slice, tokens: slice = slice(None)) -> Tensor:
        return self._slots[slot][windows, tokens]

    def write(self, slot: Slot, windows: slice, value: Tensor) -> None:
        if slot not in self._slots:
            self._slots[slot] = value.new_empty((self._windows, *value.shape[1:]))
        self._slots[slot][windows] = value
        self._written.add(slot)

    def count(self, name: str) -> int:
        return sum(slot[0] == name for slot in self._slots)

    def turn(self, seconds: float = 0.0) -> None:
        self._slots = {slot: state for slot, state in self._slots.items() if slot in self._written}
        self._written = set()

    def stamp(self) -> dict[str, Any]:
        return {}

    def restore(self, stamp: dict[str, Any]) -> bool:
        return False


class FileStates:
    """States in two files used alternately: one holds the states before a block, the other is being written.

    So the states of the last finished block are complete whenever the process dies. Reads and writes are direct calls,
    not mmap: the memory that holds them is the page cache, which shrinks when memory is needed elsewhere. On resuming,
    a checksum of every slot tells whether the disk holds what was written. As a context, the files are removed at its
    end, but an exception leaves them for the next call to resume from.

    Args:
        folder: where the files are; None: in a temporary folder, which never outlives the process.
    """

    def __init__(
        self, folder: Path | None, windows: int, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._temporary: TemporaryDirectory[str] | None = None
        if folder is None:
            self._temporary = TemporaryDirectory()
            folder = Path(self._temporary.name)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._shape = (tokens, hidden)
        self._dtype = dtype
        self._device = device
        self._window_bytes = tokens * hidden * dtype.itemsize
        self._slot_bytes = windows * self._window_bytes
        self._files = [os.open(folder / f"states-{k}.bin", os.O_RDWR | os.O_CREAT, 0o644) for k in (0, 1)]
        self._now = 0
        self._places: dict[Slot, int] = {}
        self._sums: dict[Slot, int] = {}
        self._next_places: dict[Slot, int] = {}
        self._next_sums: dict[Slot, int] = {}

    def read(self, slot: Slot, windows: slice, tokens: slice = slice(None)) -> Tensor:
        T, D = self._shape
        start, stop, _ = tokens.indices(T)
        count = windows.stop - windows.start
        if count > 1 and (start, stop) != (0, T):
            parts = [self.read(slot, slice(n, n + 1), tokens) for n in range(windows.start, windows.stop)]
            return torch.cat(parts)
        value = torch.empty((count, stop - start, D), dtype=self._dtype)
        offset = self._places[slot] * self._slot_bytes + windows.start * self._window_bytes
        self._fill(_raw(value), offset + start * D * self._dtype.itemsize)
        return value.to(self._device)

    def write(self, slot: Slot, windows: slice, value: Tensor) -> None:
        place = self._next_places.setdefault(slot, len(self._next_places))
        raw = _raw(value.cpu().contiguous())
        self._next_sums[slot] = self._next_sums.get(slot, 0) + _sum(raw)
        view, offset = raw.numpy().data, place * self._slot_bytes + windows.start * self._window_bytes
        while view:
            try:
                done = os.pwrite(self._files[1 - self._now], view, offset)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OutputError(
                    f"{self._folder}: the disk is full", "free some space and run the same command again: it resumes"
                ) from error
            view, offset = view[done:], offset + done

    def count(self, name: str) -> int:
        return sum(slot[0] == name for slot in self._places)

    def turn(self, seconds: float = 0.0) -> None:
        if seconds > _SYNC_SECONDS:
            os.fdatasync(self._files[1 - self._now])
        self._now = 1 - self._now
        self._places, self._sums = self._next_places, self._next_sums
        self._next_places, self._next_sums = {}, {}

    def stamp(self) -> dict[str, Any]:
        slots = [[*slot, place, self._sums[slot]] for slot, place in self._places.items()]
        return {"file": self._now, "slots": slots}

    def restore(self, stamp: dict[str, Any]) -> bool:
        self._now = stamp["file"]
        self._places = {(name, k): place for name, k, place, _ in stamp["slots"]}
        self._sums = {(name, k): total for name, k, _, total in stamp["slots"]}
        return all(self._stored_sum(place) == self._sums[slot] for slot, place in self._places.items())

    def close(self, *, keep: bool = False) -> None:
        """Close the files; remove them unless the states are kept to resume from."""
        for k, file in enumerate(self._files):
            os.close(file)
            if not keep:
                (self._folder / f"states-{k}.bin").unlink(missing_ok=True)
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        self.close(keep=kind is not None)

    def _stored_sum(self, place: int) -> int:
        raw = torch.empty(self._window_bytes, dtype=torch.uint8)
        total = 0
        for n in range(self._slot_bytes // self._window_bytes):
            try:
                self._fill(raw, place * self._slot_bytes + n * self._window_bytes)
            except EOFError:
                return -1
            total += _sum(raw)
        return total

    def _fill(self, raw: Tensor, offset: int) -> None:
        view = raw.numpy().data
        while view:
            done = os.preadv(self._files[self._now], [view], offset)
            if not done:
                raise EOFError(self._folder)
            view, offset = view[done:], offset + done


def _raw(value: Tensor) -> Tensor:
    return value.view(-1).view(torch.uint8)


def _sum(raw: Tensor) -> int:
    """Return a checksum: the sum of the bytes as small integers, which is cheap and detects other values, zeros and
    older states.
    """
    words = raw.view(torch.int32) if raw.numel() % 4 == 0 else raw.view(torch.int8)
    return int(words.sum(dtype=torch.int64))
