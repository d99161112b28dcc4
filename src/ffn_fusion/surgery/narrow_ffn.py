"""A narrower FFN: of the sum over channels that a gated FFN is, only some terms (Puzzle, arXiv 2411.19146).

    FFN(x) = sum_k h_k Wdown[:, k]          h_k = act(x Wgate[k]^T) (x Wup[k]^T)

Rows of gate and up (and of their biases) and columns of down go; down's bias stays. Which channels: those of the
largest contribution, the mean over calibration tokens of how far a channel moves the output,

    C_k = mean |h_k| * |Wdown[:, k]|_2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blueprint import NarrowedFfn
from ffn_fusion.surgery.fuse_ffn import fuse_columns, fuse_rows
from ffn_fusion.surgery.joins import Copy, Join, Rows, Wanted


def narrow_rows(part: Tensor, channels: Sequence[int], begin: int = 0) -> Tensor:
    """Rows ``channels`` of gate or up [F, D] (or of a bias [F]); ``part`` may be a piece of it from row ``begin``."""
    return part.index_select(0, _index(channels, part) - begin)


def narrow_columns(down_DF: Tensor, channels: Sequence[int]) -> Tensor:
    """[D, F] -> [D, len(channels)]."""
    return down_DF.index_select(1, _index(channels, down_DF))


def channel_contribution(mean_F: Tensor, down_DF: Tensor) -> Tensor:
    """C [F], from the mean of |h| over tokens."""
    wide = torch.promote_types(down_DF.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(down_DF, dim=0, dtype=wide)
    return mean_F * lengths


# ---- which tensor takes what


def narrowed_join(kind: NarrowedFfn, wanted: Wanted) -> Join:
    """Whatever counts the channels keeps only some; the rest is copied."""
    (source,) = wanted.sources
    if wanted.tensor.along != "width":
        return Copy(source)
    return Chosen(source, kind.channels, wanted.tensor.axis, wanted.padding, wanted.tensor.stacked)


def narrowed_parallel(kind: NarrowedFfn, wanted: Wanted, at: int, rounded: bool) -> Join | None:
    """What stands for a tensor of the whole FFN; see ``transforms.Transform``. Channels that are gone add nothing."""
    if wanted.tensor.role != "out of":
        return None
    return Only(wanted.sources[at], kind.channels, wanted.tensor.axis)


@dataclass(frozen=True)
class Chosen(Join):
    """The rows (or columns, with ``axis`` 1) ``channels`` of one tensor, then ``padding`` zeros.

    Where the tensor is ``stacked`` matrices along axis 0, this holds for each of them.
    """

    source: str
    channels: tuple[int, ...]
    axis: int
    padding: int = 0
    stacked: int = 1

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        if self.axis == 1:
            part = parent.rows(self.source, start, stop).to(dtype)
            return fuse_columns([narrow_columns(part, self.channels)], self.padding)
        width, size = parent.tensors[self.source].shape[0] // self.stacked, len(self.channels) + self.padding
        parts = [torch.zeros(0, *shape[1:], dtype=dtype)]
        for matrix in range(self.stacked):
            first, last = (min(max(row - matrix * size, 0), size) for row in (start, stop))
            channels = [matrix * width + channel for channel in self.channels[first:last]]
            if channels:
                part = parent.rows(self.source, channels[0], channels[-1] + 1)
                parts.append(narrow_rows(part, channels, channels[0]).to(dtype))
            parts.append(torch.zeros(last - first - len(channels), *shape[1:], dtype=dtype))
        return fuse_rows(parts)


@dataclass(frozen=True)
class Only(Join):
    """One tensor with zeros everywhere but in the rows (or columns, with ``axis`` 1) ``channels``."""

    source: str
    channels: tuple[int, ...]
    axis: int

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        part = parent.rows(self.source, start, stop).to(dtype)
        kept = torch.zeros(shape[self.axis], dtype=torch.bool)
        kept[torch.tensor(self.channels)] = True
        mask = kept if self.axis == 1 else kept[start:stop].view(-1, *(1,) * (part.ndim - 1))
        return torch.where(mask, part, torch.zeros((), dtype=dtype))


def _index(channels: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(channels, dtype=torch.int64, device=like.device)
