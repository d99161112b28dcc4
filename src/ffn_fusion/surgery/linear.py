"""One linear layer in place of a sub-block (Puzzle, arXiv 2411.19146): the product of its two outer matrices.

    attention   W = sum_h Wo[:, h] Wv[h // group]     as if every token attended to itself alone
    FFN         W = Wdown Wup                         as if the gate, or the activation, were 1

Biases are left out, since such a layer has none. The closed-form repair starts from this matrix and solves it anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blueprint import LinearSubBlock
from ffn_fusion.families import AttentionSpec
from ffn_fusion.surgery.fuse_ffn import repeat_heads
from ffn_fusion.surgery.joins import Copy, Join, Rows, Wanted


def linear_of(out_DF: Tensor, into_FD: Tensor) -> Tensor:
    """[rows of D, F] and [F, D] -> [rows of D, D], rounded once."""
    wide = torch.promote_types(out_DF.dtype, torch.float32)
    return (out_DF.to(wide) @ into_FD.to(wide)).to(out_DF.dtype)


# ---- which tensor takes what


def linear_join(kind: LinearSubBlock, wanted: Wanted) -> Join:
    """The product of the two matrices; norms, and a layer that was linear before, are copied."""
    (had,) = wanted.had
    if had.kind == "linear" or wanted.tensor.role != "out of":
        return Copy(*wanted.sources)
    attention = isinstance(had, AttentionSpec)
    into, out = ("attention.v", "attention.o") if attention else ("ffn.up", "ffn.down")
    group, kv_heads = (had.heads // had.kv_heads, had.kv_heads) if isinstance(had, AttentionSpec) else (1, 1)
    (out_name,), (into_name,) = wanted.named(out), wanted.named(into)
    return Product(out_name, into_name, group, kv_heads)


@dataclass(frozen=True)
class Product(Join):
    """``out`` [D, F] times ``into`` [F / times, D], of which each of the ``heads`` is repeated ``times`` times."""

    out: str
    into: str
    times: int
    heads: int

    @property
    def sources(self) -> tuple[str, ...]:
        return self.out, self.into

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        into = parent.read(self.into)
        repeated = repeat_heads(into, self.times, len(into) // self.heads)
        return linear_of(parent.rows(self.out, start, stop), repeated).to(dtype)
