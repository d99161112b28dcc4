"""Changed copies of the hidden state: each leaves the parent's path at one block and joins the variants behind another.

An edit says what the state is behind its last block; from there on it runs the parent's blocks like every variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ffn_fusion.blockwise.stack import Block


class Edit(Protocol):
    """A change of the parent between blocks ``first`` and ``last``, inclusive."""

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    def advance(self, i: int, block: Block, x: Tensor) -> Tensor | None:
        """Called for i = first..last in order with the parent's state before block i; returns the state at ``last``."""


@dataclass(frozen=True)
class RemoveBlock:
    """The block does nothing: f(X) = X."""

    first: int

    @property
    def last(self) -> int:
        return self.first

    def advance(self, i: int, block: Block, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class RemoveAttention:
    """The block's FFN alone: f(X) = X + FFN(n2(X))."""

    first: int

    @property
    def last(self) -> int:
        return self.first

    def advance(self, i: int, block: Block, x: Tensor) -> Tensor:
        return x + block.ffn(x)


@dataclass(frozen=True)
class RemoveFfn:
    """The block's attention alone: f(X) = X + Attn(n1(X))."""

    first: int

    @property
    def last(self) -> int:
        return self.first

    def advance(self, i: int, block: Block, x: Tensor) -> Tensor:
        return x + block.attention(x)


@dataclass
class FusedStretch:
    """Blocks first..last with their attentions dropped and FFNs first..fused_last side by side on one input.

    U = X (or X + Attn_first(n1(X)) where ``keeps_attention``); S = U + sum_{j <= fused_last} FFN_j(n_j(U)); the FFNs
    behind fused_last, if any, follow in sequence. ``fused_last == first`` fuses nothing: attentions are only dropped.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool = False
    _input: Tensor | None = field(default=None, repr=False)
    _sum: Tensor | None = field(default=None, repr=False)

    def advance(self, i: int, block: Block, x: Tensor) -> Tensor | None:
        if i == self.first:
            self._input = x + block.attention(x) if self.keeps_attention else x
            self._sum = self._input
        assert self._input is not None
        assert self._sum is not None
        self._sum = self._sum + block.ffn(self._input if i <= self.fused_last else self._sum)
        if i < self.last:
            return None
        result, self._input, self._sum = self._sum, None, None
        return result
