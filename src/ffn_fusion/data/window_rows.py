"""Token windows in memory or in a memory-mapped file, and the concatenation of several texts' windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_HASHED = 1024  # windows hashed at once


@dataclass(frozen=True)
class InFile:
    """Windows ``start`` to ``stop`` of ``context`` token ids each, in a file that contains nothing else."""

    path: Path
    dtype: str
    context: int
    start: int
    stop: int

    def ids_NT(self) -> npt.NDArray[np.integer[Any]]:  # noqa: N802
        """Memory-map the windows: only what is accessed is read.

        Raises:
            DataError: the file is missing.
        """
        shape = (self.stop - self.start, self.context)
        if not shape[0]:
            return np.empty(shape, self.dtype)
        try:
            offset = self.start * self.context * np.dtype(self.dtype).itemsize
            return np.memmap(self.path, self.dtype, "r", offset, shape)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: can't be read ({error})", "processes on several machines need one disk for the output"
            ) from error


@dataclass(frozen=True)
class TokenWindows:
    """``ids_NT``: N windows of T token ids of the text called ``label``.

    Windows from ``write_windows`` stay in their file; only its name is sent to other processes.
    """

    label: str
    ids_NT: npt.NDArray[np.integer[Any]]
    in_file: InFile | None = None

    @classmethod
    def of_file(cls, label: str, in_file: InFile) -> TokenWindows:
        return cls(label, in_file.ids_NT(), in_file)

    @property
    def tokens(self) -> int:
        return int(self.ids_NT.size)

    def part(self, start: int, stop: int) -> TokenWindows:
        """Some of them."""
        if self.in_file is None:
            return TokenWindows(self.label, self.ids_NT[start:stop])
        file = self.in_file
        there = InFile(file.path, file.dtype, file.context, file.start + start, file.start + stop)
        return TokenWindows.of_file(self.label, there)

    def in_memory(self) -> TokenWindows:
        return TokenWindows(self.label, np.array(self.ids_NT, np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.in_file is None:
            return TokenWindows, (self.label, self.ids_NT)
        return TokenWindows.of_file, (self.label, self.in_file)


class WindowRows:
    """All windows of several texts as one sequence, [N, T], read from memory or disk on access."""

    def __init__(self, texts: Sequence[TokenWindows]) -> None:
        self._parts = [text.ids_NT for text in texts]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.shape = int(self._ends[-1]), self._parts[0].shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, windows: int | Sequence[int]) -> Tensor:
        """Return a window [T], or several [n, T], as int64."""
        import torch

        if isinstance(windows, int):
            return torch.from_numpy(self._row(windows))
        rows = [self._row(window) for window in windows]
        return torch.from_numpy(np.stack(rows) if rows else np.empty((0, self.shape[1]), np.int64))

    @cached_property
    def content(self) -> bytes:
        """Return a hash of shape and tokens, computed a few windows at a time."""
        found = hashlib.sha256(repr(self.shape).encode())
        for part in self._parts:
            for start in range(0, len(part), _HASHED):
                found.update(np.ascontiguousarray(part[start : start + _HASHED], np.int64).data)
        return found.digest()

    def _row(self, window: int) -> npt.NDArray[np.int64]:
        if not -len(self) <= window < len(self):
            raise IndexError(window)
        window %= len(self)
        part = int(np.searchsorted(self._ends, window, side="right"))
        return np.array(self._parts[part][window - (self._ends[part] - len(self._parts[part]))], np.int64)
