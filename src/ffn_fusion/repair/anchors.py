"""Anchors: the tokens that a repaired candidate is fitted to, in two folds, and kernels K that travel with the states.

The even windows are one fold, the odd ones the other. A fold's anchors are evenly spaced in its windows and include the
first token of each, which is unlike all others. Shapes: N windows, T tokens, m anchors per window, M per fold. A
window's kernel is [T + m, M]: row t is k(t, the other fold's anchors), row T + k is k(its own k-th anchor, its own
fold's anchors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

MOST = 2048
"""The most anchors per fold."""

Folds = tuple[Tensor, Tensor]
"""One tensor for the fold of the even windows, and one for that of the odd ones."""
Reader = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Anchors:
    """The anchors of windows that go through together; there are none for fewer than two windows."""

    windows: int
    tokens: int
    most: int = MOST

    @property
    def enough(self) -> bool:
        return self.windows > 1

    @cached_property
    def positions(self) -> list[int]:
        """The positions of the anchors in a window."""
        count = min(self.tokens, self.most // len(self._used(0)))
        return [k * self.tokens // count for k in range(count)]

    @property
    def size(self) -> int:
        """M of the larger fold."""
        return len(self._used(0)) * len(self.positions)

    @property
    def kernel_shape(self) -> tuple[int, int]:
        return self.tokens + len(self.positions), self.size

    def gather(self, parts: Sequence[slice], read: Reader) -> Folds:
        """Gather what ``read`` gives at the anchors of all windows, in order: [n, T, D] -> twice [M, D]."""
        return self._gather(parts, read, self.positions)

    def gather_kernels(self, parts: Sequence[slice], read: Reader) -> tuple[Folds, Folds]:
        """Gather K within each fold, twice [M, M], and from each fold to the other; read(part) is [n, T + m, M]."""
        count = len(self.positions)
        own = list(range(self.tokens, self.tokens + count))
        both = [fold.view(-1, 2, count, fold.shape[-1]) for fold in self._gather(parts, read, own + self.positions)]
        even, odd = (len(fold) * count for fold in both)
        within, across = ([fold[:, k].flatten(0, 1) for fold in both] for k in (0, 1))
        return (within[0][:, :even], within[1][:, :odd]), (across[0][:, :odd], across[1][:, :even])

    def kernels(self, inner_NTF: Tensor, start: int, anchors: Folds, *, own: bool) -> Tensor:
        """Return kernels of the windows from number ``start`` on: [n, T, F] and twice [M, F] -> [n, T + m, M], or
        [n, T, M] without the rows of the windows' ``own`` anchors.
        """
        rows = self.tokens + len(self.positions) * own
        found = inner_NTF.new_zeros(len(inner_NTF), rows, self.size)
        for fold, mine in enumerate(_turns(start)):
            inner, same, other = inner_NTF[mine], anchors[fold], anchors[1 - fold]
            found[mine, : self.tokens, : len(other)] = inner @ other.mT
            if own:
                found[mine, self.tokens :, : len(same)] = inner[:, self.positions] @ same.mT
        return found

    def changes(self, kernels: Tensor, start: int, dual: Folds) -> Tensor:
        """Return what a repair fitted to the other fold changes: [n, T.., M] and b, twice [M, D] -> [n, T, D]."""
        found = kernels.new_empty(len(kernels), self.tokens, dual[0].shape[1])
        for fold, mine in enumerate(_turns(start)):
            other = dual[1 - fold]
            found[mine] = kernels[mine, : self.tokens, : len(other)] @ other
        return found

    def _used(self, fold: int) -> range:
        """Return the windows with anchors: all of a fold, unless there are more of them than anchors."""
        every = ceil(ceil(self.windows / 2) / self.most)
        return range(fold, self.windows, 2 * every)

    def _gather(self, parts: Sequence[slice], read: Reader, rows: list[int]) -> Folds:
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for part in parts:
            value = read(part)
            for fold in (0, 1):
                mine = [n - part.start for n in range(part.start, part.stop) if n in self._used(fold)]
                found[fold].append(value[mine][:, rows].flatten(0, 1))
        return torch.cat(found[0]), torch.cat(found[1])


def _turns(start: int) -> tuple[slice, slice]:
    """Return which of the windows from number ``start`` on belong to each fold."""
    return slice(start % 2, None, 2), slice((start + 1) % 2, None, 2)


def slots(numbers: int, precision: torch.dtype, tokens: int, hidden: int, dtype: torch.dtype) -> int:
    """Return the number of tensors [n, T, D] of a dtype that hold ``numbers`` numbers of a precision per window."""
    return ceil(numbers * precision.itemsize / (tokens * hidden * dtype.itemsize))


def pack(kernels: Tensor, tokens: int, hidden: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Pack kernels [n, ...] into tensors [n, T, D] of the states' dtype, bit for bit."""
    raw = kernels.flatten(1).view(dtype)
    count = ceil(raw.shape[1] / (tokens * hidden))
    padded = torch.nn.functional.pad(raw, (0, count * tokens * hidden - raw.shape[1]))
    return padded.view(len(kernels), count, tokens, hidden).unbind(1)


def unpack(tensors: Sequence[Tensor], shape: tuple[int, int], precision: torch.dtype) -> Tensor:
    """Return the kernels [n, *shape] that ``pack`` packed."""
    raw = torch.stack(tuple(tensors), 1).flatten(1)
    numbers = shape[0] * shape[1] * precision.itemsize // raw.dtype.itemsize
    return raw[:, :numbers].contiguous().view(precision).view(len(raw), *shape)
