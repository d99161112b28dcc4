"""FFN Fusion: the sum of n gated FFNs on one shared input IS one gated FFN (arXiv 2503.18908, theorem 1).

    sum_j (act(x Wgate_j^T) * (x Wup_j^T)) Wdown_j^T  =  (act(x G^T) * (x U^T)) D^T
    G = [Wgate_1; ...; Wgate_n]   U = [Wup_1; ...; Wup_n]   (rows, along F)
    D = [Wdown_1 ... Wdown_n]                               (columns, along F)

Widths may differ. Zero channels at the end (``padding``) add nothing: exact for any gate, since up is 0 there.
Biases: gate's and up's are concatenated like rows, down's are added. Without a gate, gate and its activation are left
out of the formula and up has the activation. A LayerNorm's bias folds as well: (z * s + b) W^T + c =
z (W diag(s))^T + (c + b W^T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blueprint import FusedFfn, FusionNorm
from ffn_fusion.families.family import Role
from ffn_fusion.surgery.fold_norm import fold_norm
from ffn_fusion.surgery.joins import Copy, Filled, Join, Rows, Wanted


def fuse_rows(parts: Sequence[Tensor], padding: int = 0) -> Tensor:
    """[F_j, D] -> [sum F_j + padding, D] (or biases [F_j] -> [sum F_j + padding])."""
    if padding:
        parts = [*parts, parts[0].new_zeros(padding, *parts[0].shape[1:])]
    return torch.cat(list(parts), dim=0) if len(parts) > 1 else parts[0]


def fuse_columns(parts: Sequence[Tensor], padding: int = 0) -> Tensor:
    """[D, F_j] -> [D, sum F_j + padding]."""
    zeros = parts[0].new_zeros(parts[0].shape[0], padding)
    return torch.cat([*parts, zeros] if padding else list(parts), dim=1)


def repeat_heads(part: Tensor, times: int, head_dim: int) -> Tensor:
    """[K d, ...] -> [K times d, ...]: every head ``times`` times, one copy after the other."""
    heads = part.view(-1, head_dim, *part.shape[1:])
    return heads.repeat_interleave(times, dim=0).flatten(0, 1)


def add_biases(parts: Sequence[Tensor]) -> Tensor:
    """sum of [D], in at least float32."""
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    return torch.stack([part.to(wide) for part in parts]).sum(0).to(parts[0].dtype)


# ---- which tensor takes what


def fused_join(kind: FusedFfn, wanted: Wanted) -> Join:
    """The matrices and biases of all sources."""
    return merged_join(wanted, kind.norm)


def merged_join(wanted: Wanted, norm: FusionNorm) -> Join:
    """Return how a tensor of several sub-blocks that share an input comes about.

    With every source's own norm, its scale is folded into the matrices that read it and becomes ones; with the last
    one's norm the others' scales are dropped.
    """
    role, own = wanted.tensor.role, norm == "own"
    if role in _UNFOLDED:
        return Filled(_UNFOLDED[role] - wanted.tensor.plus, wanted.sources) if own else Copy(wanted.sources[-1])
    if role == "out of bias":
        return Added(wanted.sources)
    assert role in ("into", "into bias", "out of"), f"{wanted.tensor.key}: nothing with a tensor {role} can be merged"
    folds = tuple(_fold(wanted, at) for at in range(len(wanted.sources))) if own else ()
    return Concatenated(wanted.sources, wanted.tensor.axis, wanted.padding, folds, wanted.tensor.stacked)


_UNFOLDED: dict[Role, float] = {"norm scale": 1.0, "norm bias": 0.0}
"""What a norm's tensors are once they're folded into the matrices after it."""


def _fold(wanted: Wanted, at: int) -> Fold | None:
    """What is folded into a tensor of source ``at``: the norm's scale into a matrix, its bias into that one's bias."""
    norm = wanted.tensor.key.partition(".")[0] + ".norm"
    if wanted.tensor.role == "into":
        return Scale(wanted.named(norm)[at], wanted.beside[norm].plus)
    matrix = wanted.beside.get(wanted.tensor.key.removesuffix(".bias"))
    if wanted.tensor.role == "into bias" and matrix and f"{norm}.bias" in wanted.beside:
        return Shift(wanted.named(f"{norm}.bias")[at], wanted.named(matrix.key)[at], matrix.axis)
    return None


def fused_parallel(kind: FusedFfn, wanted: Wanted, at: int, rounded: bool) -> Join | None:
    """What stands for a tensor of FFN ``at`` of the run where nothing is fused; see ``transforms.Transform``."""
    return merged_parallel(wanted, kind.norm, at, rounded)


def merged_parallel(wanted: Wanted, norm: FusionNorm, at: int, rounded: bool) -> Join | None:
    """Return what stands for a tensor of source ``at`` where nothing is merged; see ``transforms.Transform``."""
    role, source = wanted.tensor.role, wanted.sources[at]
    if norm == "last":
        return Copy(wanted.sources[-1]) if role in _UNFOLDED else None
    if not rounded:
        return None
    if role in _UNFOLDED:
        return Filled(_UNFOLDED[role] - wanted.tensor.plus, (source,))
    fold = _fold(wanted, at)
    return Concatenated((source,), wanted.tensor.axis, folds=(fold,)) if fold else None


@dataclass(frozen=True)
class Scale:
    """A norm's scale (``norm`` + ``plus``), folded into the matrix that reads the normalised state."""

    norm: str
    plus: float

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.norm,)

    def rows(self, parent: Rows, part: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """``part`` is rows ``start..stop-1`` of the matrix, stored as [F, D] (``axis`` 0) or [D, F] (``axis`` 1)."""
        scale_D = parent.read(self.norm)
        if self.plus:
            scale_D = scale_D.to(torch.promote_types(part.dtype, torch.float32)) + self.plus
        return fold_norm(part, scale_D[start:stop, None] if axis == 1 else scale_D)


@dataclass(frozen=True)
class Shift:
    """A norm's bias, put through the matrix that reads the normalised state and folded into that matrix's bias.

    ``matrix_axis``: the matrix is stored as [F, D] (0) or [D, F] (1).
    """

    norm: str
    matrix: str
    matrix_axis: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.norm, self.matrix)

    def rows(self, parent: Rows, part: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """``part`` is elements ``start..stop-1`` of the bias [F]. Rounded once."""
        wide = torch.promote_types(part.dtype, torch.float32)
        if self.matrix_axis == 0:
            matrix_FD = parent.rows(self.matrix, start, stop)
        else:
            matrix_FD = parent.read(self.matrix)[:, start:stop].T
        return (part.to(wide) + matrix_FD.to(wide) @ parent.read(self.norm).to(wide)).to(part.dtype)


Fold = Scale | Shift


@dataclass(frozen=True)
class Concatenated(Join):
    """Several tensors along ``axis``, then ``padding`` zeros. ``folds``, where given, has one for each of them.

    Where a tensor is ``stacked`` matrices along axis 0, each of those is concatenated and padded by itself.
    ``repeats``, if given, has a number for each of them: every head of ``head_dim`` rows is repeated that many times.
    """

    parts: tuple[str, ...]
    axis: int
    padding: int = 0
    folds: tuple[Fold | None, ...] = ()
    stacked: int = 1
    repeats: tuple[int, ...] = ()
    head_dim: int = 1

    @property
    def sources(self) -> tuple[str, ...]:
        return self.parts

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.parts, *(name for fold in self.folds if fold for name in fold.reads))

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        count = len(self.parts)
        pairs = list(zip(self.parts, self.folds or (None,) * count, self.repeats or (1,) * count, strict=True))
        if self.axis == 1:
            parts = [self._folded(parent, name, fold, start, stop).to(dtype) for name, fold, _ in pairs]
            return fuse_columns(parts, self.padding)
        parts = []
        begin = 0  # where the current piece begins among the rows of the result
        for matrix in range(self.stacked):
            for name, fold, times in pairs:
                count = times * parent.tensors[name].shape[0] // self.stacked
                first, last = max(start - begin, 0), min(stop - begin, count)
                if first < last:
                    at = matrix * count
                    parts.append(self._repeated(parent, name, fold, times, at + first, at + last))
                begin += count
            zeros = min(stop - begin, self.padding) - max(start - begin, 0)
            if zeros > 0:
                parts.append(torch.zeros(zeros, *shape[1:], dtype=dtype))
            begin += self.padding
        return fuse_rows(parts or [torch.zeros(0, *shape[1:])]).to(dtype)

    def _repeated(self, parent: Rows, name: str, fold: Fold | None, times: int, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1`` of a part of which every head is repeated ``times`` times."""
        if times == 1:
            return self._folded(parent, name, fold, start, stop)
        one = times * self.head_dim  # rows of the result that one head of the part makes
        head, end = start // one, -(-stop // one)
        rows = self._folded(parent, name, fold, head * self.head_dim, end * self.head_dim)
        return repeat_heads(rows, times, self.head_dim)[start - head * one : stop - head * one]

    def _folded(self, parent: Rows, name: str, fold: Fold | None, start: int, stop: int) -> Tensor:
        rows = parent.rows(name, start, stop)
        return fold.rows(parent, rows, self.axis, start, stop) if fold else rows


@dataclass(frozen=True)
class Added(Join):
    """The sum of several biases."""

    parts: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return self.parts

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        return add_biases([parent.rows(name, start, stop).to(dtype) for name in self.parts])
