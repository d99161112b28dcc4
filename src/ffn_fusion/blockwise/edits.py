"""Changed copies of the hidden state: each leaves the parent's path at one block and joins the variants behind another.

An edit says what the state is behind its last block; from there on it runs the parent's blocks like every variant. On
the way it carries tensors of the state's shape, so that nothing has to be remembered outside the states on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ffn_fusion.blockwise.stack import Block, Contributions, Stack

Carried = tuple[Tensor, ...]


@dataclass(frozen=True)
class AllWindows:
    """The windows that go through together, before the first of them goes through a block.

    ``parts`` are those that go through at a time; ``read`` gives the parent's state [n, T, D] before the block.
    """

    parts: tuple[slice, ...]
    read: Callable[[slice], Tensor]

    @property
    def count(self) -> int:
        last: int = self.parts[-1].stop
        return last


@dataclass(frozen=True)
class Cost:
    """What an edit takes at a block: what the plan counts.

    Args:
        attentions, ffns: evaluations of the block's parts, a window.
        flops: beside those, a window. once: FLOPs whatever the number of windows that go through together.
        held: bytes that stand in memory while the block is worked on. row: bytes more for each token of a matmul.
        shared: edits that say the same here pay this only once between them.
    """

    attentions: int = 0
    ffns: int = 0
    flops: float = 0.0
    once: float = 0.0
    held: int = 0
    row: int = 0
    shared: Hashable = None


class Edit(Protocol):
    """A change of the parent between blocks ``first`` and ``last``, inclusive."""

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    @property
    def lender(self) -> str | None:
        """The name of another edit that it begins with: until it carries tensors of its own, it's given that one's."""

    @property
    def windows_wanted(self) -> int:
        """Number of windows that should go through together; if it is more than one, at least two must."""

    def carries(self, i: int) -> int:
        """How many tensors [n, T, D] it carries from block i < last to the next, at most."""

    def prepare(self, i: int, block: Block, windows: AllWindows, carried: Callable[[int, slice], Tensor]) -> None:
        """Called before block i's first ``advance``, with a look at all windows. What it finds lasts for this block.

        Args:
            windows: one object for all edits of a block.
            carried: (k, windows) -> the k-th of the tensors that it (or its lender) returned at i - 1.
        """

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        """Called for i = first..last in order, for some of the windows at a time.

        Args:
            part: those windows.
            x: the parent's state before block i. parent: what block i adds to it.
            carried: what this (or its lender) returned at i - 1; nothing at ``first``.

        Returns:
            What to carry on; at ``last`` just one tensor, the state behind the block.
        """

    def costs(self, i: int) -> tuple[Cost, ...]:
        """What it takes at block i."""

    def release(self) -> None:
        """Block ``last`` is done for all windows."""


class OwnWindows:
    """What edits have in common that go by one window at a time: any number of windows will do."""

    @property
    def lender(self) -> str | None:
        return None

    @property
    def windows_wanted(self) -> int:
        return 1

    def prepare(self, i: int, block: Block, windows: AllWindows, carried: Callable[[int, slice], Tensor]) -> None:
        pass

    def release(self) -> None:
        pass


class _OneBlock(OwnWindows):
    """What edits of a single block have in common."""

    first: int

    @property
    def last(self) -> int:
        return self.first

    def carries(self, i: int) -> int:
        return 0

    def costs(self, i: int) -> tuple[Cost, ...]:
        return ()


@dataclass(frozen=True)
class RemoveBlock(_OneBlock):
    """The block does nothing: f(X) = X."""

    first: int

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        return (x,)


@dataclass(frozen=True)
class RemoveAttention(_OneBlock):
    """The block's FFN alone: f(X) = X + FFN(n2(X))."""

    first: int

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        return (x + block.ffn(x),)

    def costs(self, i: int) -> tuple[Cost, ...]:
        return (Cost(ffns=1),)


@dataclass(frozen=True)
class RemoveFfn(_OneBlock):
    """The block's attention alone: f(X) = X + Attn(n1(X))."""

    first: int

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        return (x + parent.attention,)


@dataclass(frozen=True)
class NarrowFfn(_OneBlock):
    """The block with only these channels of its FFN: f(X) = Y + sum_k h_k(n2(Y)) Wdown[:, k], Y = X + Attn(n1(X))."""

    first: int
    channels: tuple[int, ...]

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        y = x + parent.attention
        inner, _ = block.inner_and_outer("ffn", block.ffn_input(x, parent.attention))
        down = block.projection("ffn")
        kept = torch.tensor(self.channels, device=x.device)
        narrow = nn.functional.linear(inner.index_select(-1, kept), down.weight.index_select(1, kept), down.bias)
        return (y + narrow,)

    def costs(self, i: int) -> tuple[Cost, ...]:
        return (Cost(ffns=1),)


@dataclass(frozen=True)
class FusedRun(OwnWindows):
    """Blocks first..last with their attentions dropped and FFNs first..fused_last side by side on one input.

    U = X (or X + Attn_first(n1(X)) where ``keeps_attention``); S = U + sum_{j <= fused_last} FFN_j(n_j(U)); the FFNs
    behind fused_last, if any, follow in sequence. ``fused_last == first`` fuses nothing: attentions are only dropped.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool = False

    def carries(self, i: int) -> int:
        """The run's input and its sum so far; behind the run the sum alone."""
        return 2 if i < self.fused_last else 1

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        if i == self.first:
            carried = (x, x)
            if self.keeps_attention:
                carried = (block.ffn_input(x, parent.attention), x + parent.attention)
        total = carried[-1]
        total = total + block.ffn(carried[0] if i <= self.fused_last else total)
        return (carried[0], total) if i < min(self.last, self.fused_last) else (total,)

    def costs(self, i: int) -> tuple[Cost, ...]:
        return (Cost(ffns=1),)


@dataclass(frozen=True)
class ReplaceBlocks(OwnWindows):
    """Parent blocks first..last replaced with blocks of another model: any child sub-block, alone in the parent.

    ``child`` is a checkpoint's stack, or that of a child which exists only as a blueprint; ``blocks`` are its blocks
    that stand for the parent's. They're loaded at ``last``, one after another.
    """

    first: int
    last: int
    child: Stack = field(repr=False)
    blocks: tuple[int, ...]
    _loaded: dict[int, Block] = field(default_factory=dict, repr=False, compare=False)

    def carries(self, i: int) -> int:
        return 1

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        state = x if i == self.first else carried[0]
        if i < self.last:
            return (state,)
        for k in self.blocks:
            if k not in self._loaded:
                self._loaded[k] = self.child.block(k)
            added = self._loaded[k].contributions(state)
            state = state + added.attention + added.ffn
        return (state,)

    def costs(self, i: int) -> tuple[Cost, ...]:
        return (Cost(len(self.blocks), len(self.blocks)),) if i == self.last else ()

    def release(self) -> None:
        self._loaded.clear()
