"""FFN Fusion: the sum of n gated FFNs on one shared input IS one gated FFN (arXiv 2503.18908, theorem 1).

    sum_j (act(x Wgate_j^T) * (x Wup_j^T)) Wdown_j^T  =  (act(x G^T) * (x U^T)) D^T
    G = [Wgate_1; ...; Wgate_n]   U = [Wup_1; ...; Wup_n]   (rows, along F)
    D = [Wdown_1 ... Wdown_n]                               (columns, along F)

Widths may differ. Zero channels at the end (``padding``) add nothing: exact for any gate, since up is 0 there.
Biases: gate's and up's are concatenated like rows, down's are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blueprint import FusedFfn
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


def add_biases(parts: Sequence[Tensor]) -> Tensor:
    """sum of [D], in at least float32."""
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    return torch.stack([part.to(wide) for part in parts]).sum(0).to(parts[0].dtype)


# ---- which tensor takes what


def fused_join(kind: FusedFfn, wanted: Wanted) -> Join:
    """With every FFN's own norm, its scale is folded into the matrices behind it and becomes ones; with the last FFN's
    norm the others' scales are dropped.
    """
    role, norms = wanted.tensor.role, wanted.named("ffn.norm")
    own = kind.norm == "own"
    if role == "norm scale":
        return Filled(1.0, norms) if own else Copy(norms[-1])
    if role == "out of bias":
        return Added(wanted.sources)
    assert role in ("into", "into bias", "out of"), f"{wanted.tensor.key}: no FFN with a tensor {role} can be fused"
    scales = norms if own and role == "into" else ()
    return Concatenated(wanted.sources, wanted.tensor.axis, wanted.padding, scales)


def fused_parallel(kind: FusedFfn, wanted: Wanted, at: int, rounded: bool) -> Join | None:
    """What stands for a tensor of FFN ``at`` of the run where nothing is fused; see ``transforms.Transform``."""
    role, norms = wanted.tensor.role, wanted.named("ffn.norm")
    if kind.norm == "last":
        return Copy(norms[-1]) if role == "norm scale" else None
    if not rounded or role not in ("norm scale", "into"):
        return None
    if role == "norm scale":
        return Filled(1.0, (norms[at],))
    return Concatenated((wanted.sources[at],), wanted.tensor.axis, scales=(norms[at],))


@dataclass(frozen=True)
class Concatenated(Join):
    """Several tensors along ``axis``, then ``padding`` zeros.

    ``scales``, where given, are the norm scales folded into them first, one a source; they scale the other axis.
    """

    parts: tuple[str, ...]
    axis: int
    padding: int = 0
    scales: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return self.parts

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.parts, *self.scales)

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        scales = self.scales or (None,) * len(self.parts)
        pairs = list(zip(self.parts, scales, strict=True))
        if self.axis == 1:
            parts = [self._columns(parent, name, scale, start, stop).to(dtype) for name, scale in pairs]
            return fuse_columns(parts, self.padding)
        parts = []
        begin = 0  # where the current source begins among the rows of the result
        for name, scale in pairs:
            count = parent.tensors[name].shape[0]
            first, last = max(start - begin, 0), min(stop - begin, count)
            if first < last:
                rows = parent.rows(name, first, last)
                parts.append(fold_norm(rows, parent.read(scale)) if scale else rows)
            begin += count
        missing = stop - start - sum(part.shape[0] for part in parts)
        if not parts:
            return torch.zeros(missing, *shape[1:], dtype=dtype)
        return fuse_rows(parts, missing).to(dtype)

    def _columns(self, parent: Rows, name: str, scale: str | None, start: int, stop: int) -> Tensor:
        rows = parent.rows(name, start, stop)
        return fold_norm(rows, parent.read(scale)[start:stop, None]) if scale else rows


@dataclass(frozen=True)
class Added(Join):
    """The sum of several biases."""

    parts: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return self.parts

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        return add_biases([parent.rows(name, start, stop).to(dtype) for name in self.parts])
