"""Changed copies of the hidden state: each leaves the parent's path at one block and joins the variants behind another.

An edit says what the state is behind its last block; from there on it runs the parent's blocks like every variant. On
the way it carries tensors of the state's shape, so that nothing has to be remembered outside the states on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ffn_fusion.blockwise.stack import Block, Contributions, Stack

Carried = tuple[Tensor, ...]


class Edit(Protocol):
    """A change of the parent between blocks ``first`` and ``last``, inclusive."""

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    @property
    def carries(self) -> int:
        """How many tensors [n, T, D] it carries from one block to the next, at most."""

    def advance(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        """Called for i = first..last in order, for some of the windows at a time.

        Args:
            x: the parent's state before block i. parent: what block i adds to it.
            carried: what this returned at i - 1; nothing at ``first``.

        Returns:
            What to carry on; at ``last`` just one tensor, the state behind the block.
        """

    def work(self, i: int) -> tuple[int, int]:
        """(attentions, FFNs) that it evaluates at block i: what the plan counts."""

    def release(self) -> None:
        """Block ``last`` is done for all windows."""


class _OneBlock:
    """What edits of a single block have in common."""

    first: int

    @property
    def last(self) -> int:
        return self.first

    @property
    def carries(self) -> int:
        return 0

    def release(self) -> None:
        pass


@dataclass(frozen=True)
class RemoveBlock(_OneBlock):
    """The block does nothing: f(X) = X."""

    first: int

    def advance(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        return (x,)

    def work(self, i: int) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class RemoveAttention(_OneBlock):
    """The block's FFN alone: f(X) = X + FFN(n2(X))."""

    first: int

    def advance(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        return (x + block.ffn(x),)

    def work(self, i: int) -> tuple[int, int]:
        return 0, 1


@dataclass(frozen=True)
class RemoveFfn(_OneBlock):
    """The block's attention alone: f(X) = X + Attn(n1(X))."""

    first: int

    def advance(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        return (x + parent.attention,)

    def work(self, i: int) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class FusedStretch:
    """Blocks first..last with their attentions dropped and FFNs first..fused_last side by side on one input.

    U = X (or X + Attn_first(n1(X)) where ``keeps_attention``); S = U + sum_{j <= fused_last} FFN_j(n_j(U)); the FFNs
    behind fused_last, if any, follow in sequence. ``fused_last == first`` fuses nothing: attentions are only dropped.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool = False

    @property
    def carries(self) -> int:
        """The run's input and its sum so far; behind the run the sum alone."""
        return 2

    def advance(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        if i == self.first:
            start = x + parent.attention if self.keeps_attention else x
            carried = (start, start)
        total = carried[-1]
        total = total + block.ffn(carried[0] if i <= self.fused_last else total)
        return (carried[0], total) if i < min(self.last, self.fused_last) else (total,)

    def work(self, i: int) -> tuple[int, int]:
        return 0, 1

    def release(self) -> None:
        pass


@dataclass(frozen=True)
class ReplaceBlocks:
    """Parent blocks first..last replaced with blocks of another model: any child sub-block, alone in the parent.

    ``child`` is a checkpoint's stack, or that of a child which exists only as a blueprint; ``blocks`` are its blocks
    that stand for the parent's. They're loaded at ``last``, one after another.
    """

    first: int
    last: int
    child: Stack = field(repr=False)
    blocks: tuple[int, ...]
    _loaded: dict[int, Block] = field(default_factory=dict, repr=False, compare=False)

    @property
    def carries(self) -> int:
        return 1

    def advance(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        state = x if i == self.first else carried[0]
        if i < self.last:
            return (state,)
        for k in self.blocks:
            if k not in self._loaded:
                self._loaded[k] = self.child.block(k)
            added = self._loaded[k].contributions(state)
            state = state + added.attention + added.ffn
        return (state,)

    def work(self, i: int) -> tuple[int, int]:
        return (len(self.blocks), len(self.blocks)) if i == self.last else (0, 0)

    def release(self) -> None:
        self._loaded.clear()
