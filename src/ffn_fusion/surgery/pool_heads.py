"""Fewer KV heads: each is the mean of neighbouring ones (GQA, arXiv 2305.13245, section 2.1).

    Wk'_j = 1/p sum_{i < p} Wk_{j p + i}     p = K / K'; Wv and the biases the same

Query heads share KV heads in groups of H / K neighbours, so after pooling the groups of H / K' are those of the heads
that were pooled. Heads that are equal stay exactly what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blueprint import PooledAttention
from ffn_fusion.families import AttentionSpec
from ffn_fusion.surgery.joins import Copy, Join, Rows, Wanted


def pool_heads(part: Tensor, times: int, head_dim: int) -> Tensor:
    """[K d, ...] -> [K / times d, ...]: the mean of ``times`` neighbouring heads, rounded once."""
    heads = part.view(-1, times, head_dim, *part.shape[1:]).to(torch.promote_types(part.dtype, torch.float32))
    first = heads[:, :1]  # means of differences, so that equal heads give themselves
    return (first + (heads - first).mean(1, keepdim=True)).squeeze(1).flatten(0, 1).to(part.dtype)


# ---- which tensor takes what


def pooled_join(kind: PooledAttention, wanted: Wanted) -> Join:
    """Keys and values are pooled; the rest is copied."""
    (source,) = wanted.sources
    if wanted.tensor.along != "KV heads":
        return Copy(source)
    (had,) = wanted.had
    assert isinstance(had, AttentionSpec)
    return Pooled(source, had.kv_heads // kind.kv_heads, wanted.tensor.shape[0] // kind.kv_heads)


@dataclass(frozen=True)
class Pooled(Join):
    """One tensor with every ``times`` heads of ``head_dim`` rows as one."""

    source: str
    times: int
    head_dim: int

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        head, end = start // self.head_dim, -(-stop // self.head_dim)
        size = self.times * self.head_dim
        pooled = pool_heads(parent.rows(self.source, head * size, end * size), self.times, self.head_dim)
        return pooled[start - head * self.head_dim : stop - head * self.head_dim].to(dtype)
