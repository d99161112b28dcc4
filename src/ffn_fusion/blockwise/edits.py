"""Edits: changed copies of the hidden state that leave the parent's path at one block and become variants at another.

An edit says what the state is after its last block; from there on it runs the parent's blocks like every variant. On
the way it carries tensors of the state's shape, so that everything that has to be remembered is among the states.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ffn_fusion.blockwise.stack import Block, Contributions, Stack
from ffn_fusion.families.layout import block_parameters

Carried = tuple[Tensor, ...]


@dataclass(frozen=True)
class AllWindows:
    """All windows of a chunk, before the first of them goes through a block.

    Args:
        parts: the windows that go through the block at a time.
        read: (part) -> the parent's state [n, T, D] before the block.
    """

    parts: tuple[slice, ...]
    read: Callable[[slice], Tensor]

    @property
    def count(self) -> int:
        last: int = self.parts[-1].stop
        return last


@dataclass(frozen=True)
class Cost:
    """What an edit costs at a block, for the schedule.

    Args:
        attentions, ffns: evaluations of the block's sub-blocks, per window.
        flops: other FLOPs, per window.
        once: FLOPs that do not depend on the number of windows.
        held: bytes held in memory while the block is worked on.
        row: additional bytes per token of a matrix product.
        shared: costs of several edits with the same value here are paid once.
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
        """The name of another edit whose carried tensors this one is given until it carries its own."""

    @property
    def windows_wanted(self) -> int:
        """The number of windows that should go through together; if more than one, at least two must."""

    def carries(self, i: int) -> int:
        """Return the most tensors [n, T, D] that it carries from block i < last to the next."""

    def prepare(self, i: int, block: Block, windows: AllWindows, carried: Callable[[int, slice], Tensor]) -> None:
        """Look at all windows before block i's first ``advance``.

        Args:
            windows: one object for all edits of a block.
            carried: (k, windows) -> the k-th of the tensors that this edit (or its lender) returned at i - 1.
        """

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        """Go through block i with some of the windows; called for i = first..last in order.

        Args:
            part: the windows.
            x: the parent's state before block i.
            parent: what block i adds to the parent's state.
            carried: what this edit (or its lender) returned at i - 1; nothing at ``first``.

        Returns:
            The tensors to carry to the next block; at ``last`` only one, the state after the block.
        """

    def costs(self, i: int) -> tuple[Cost, ...]:
        """Return the costs at block i."""

    def release(self) -> None:
        """Free what is held: block ``last`` is done for all windows."""


class OwnWindows:
    """Base of edits that look at no other window: any number of windows may go through together."""

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
    """Base of edits of a single block."""

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
        return (y + block.added("ffn", narrow),)

    def costs(self, i: int) -> tuple[Cost, ...]:
        return (Cost(ffns=1),)


@dataclass(frozen=True)
class FusedRun(OwnWindows):
    """Blocks first..last with their attentions dropped and FFNs first..fused_last side by side on one input.

    U = X (or X + Attn_first(n1(X)) if ``keeps_attention``); S = U + sum_{j <= fused_last} FFN_j(n_j(U)); the FFNs after
    fused_last, if any, follow in sequence. ``fused_last == first`` fuses nothing: attentions are only dropped.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool = False

    def carries(self, i: int) -> int:
        """Return 2 for the run's input and its sum so far, or 1 for the sum alone after the fused part."""
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
class SideBySide(OwnWindows):
    """Blocks first..last side by side, as one block in two steps: Y = X + sum_j A_j(n_j X), then Y + sum_j F_j(n_j Y).

    FFNs wait for the last attention, so blocks before the last one are loaded again there.

    Args:
        stack: the parent's own.
    """

    first: int
    last: int
    stack: Stack = field(repr=False, compare=False)
    _loaded: list[Block] = field(default_factory=list, repr=False, compare=False)

    def carries(self, i: int) -> int:
        """Return 2: the run's input, and that with the attentions so far."""
        return 2

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        start, attended = self.attend(i, block, x, parent, carried)
        if i < self.last:
            return start, attended
        total = attended
        for each in self.blocks(block):
            total = total + each.ffn(attended)
        return (total,)

    def attend(self, i: int, block: Block, x: Tensor, parent: Contributions, carried: Carried) -> tuple[Tensor, Tensor]:
        """Return the run's input X, and X with the attentions of blocks first..i."""
        start, attended = (carried[0], carried[1]) if carried else (x, x)
        return start, attended + (block.attention(start) if carried else parent.attention)

    def blocks(self, last: Block) -> list[Block]:
        """Return all blocks of the run."""
        if not self._loaded:
            self._loaded.extend(self.stack.block(i) for i in range(self.first, self.last))
        return [*self._loaded, last]

    def costs(self, i: int) -> tuple[Cost, ...]:
        """Return the costs: all FFNs are computed at the last block."""
        ffns = self.last + 1 - self.first if i == self.last else 0
        held = sum(block_parameters(self.stack.spec, j) for j in range(self.first, i)) * self.stack.dtype.itemsize
        return (Cost(attentions=int(i > self.first), ffns=ffns, held=held if i == self.last else 0),)

    def release(self) -> None:
        self._loaded.clear()


@dataclass(frozen=True)
class InParallel(OwnWindows):
    """Blocks first..last side by side as in the paper: X + sum_j (block_j(X) - X), each FFN after its own attention."""

    first: int
    last: int

    def carries(self, i: int) -> int:
        """Return 2: the run's input, and its sum so far."""
        return 2

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        start, total = carried or (x, x)
        added = block.contributions(start) if carried else parent
        total = total + added.attention + added.ffn
        return (start, total) if i < self.last else (total,)

    def costs(self, i: int) -> tuple[Cost, ...]:
        later = int(i > self.first)
        return (Cost(attentions=later, ffns=later),)


@dataclass(frozen=True)
class ReplaceBlocks(OwnWindows):
    """Parent blocks first..last replaced with blocks of another model: any change of a child, alone in the parent.

    Args:
        child: the stack of a checkpoint, or of a child that exists only as a blueprint.
        blocks: the child's blocks that replace the parent's; they are loaded at ``last``, one after another.
        same_attention: whether the one block differs in its FFN alone, so that the parent's attention serves.
    """

    first: int
    last: int
    child: Stack = field(repr=False)
    blocks: tuple[int, ...]
    same_attention: bool = False
    _loaded: dict[int, Block] = field(default_factory=dict, repr=False, compare=False)

    def carries(self, i: int) -> int:
        return 1

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        state = x if i == self.first else carried[0]
        if i < self.last:
            return (state,)
        if self.same_attention:
            ffn = self._block(self.blocks[0]).ffn(block.ffn_input(x, parent.attention)) if self.blocks else 0.0
            return (x + parent.attention + ffn,)
        for k in self.blocks:
            added = self._block(k).contributions(state)
            state = state + added.attention + added.ffn
        return (state,)

    def costs(self, i: int) -> tuple[Cost, ...]:
        attentions = 0 if self.same_attention else len(self.blocks)
        held = sum(block_parameters(self.child.spec, k) for k in self.blocks) * self.child.dtype.itemsize
        return (Cost(attentions, len(self.blocks), held=held),) if i == self.last else ()

    def release(self) -> None:
        self._loaded.clear()

    def _block(self, k: int) -> Block:
        if k not in self._loaded:
            self._loaded[k] = self.child.block(k)
        return self._loaded[k]
