"""One entry at work: its blocks, and the parent's states that it starts from and is to reach.

    o_c = the state after the entry's blocks, from the parent's state before them
    error = mean over tokens of |o_p - o_c|^2 / |o_p|^2            o_p: the parent's state after the same blocks

That is the normalised loss of blockwise local distillation (Puzzle, arXiv 2411.19146, section 2.2), token by token, so
that the few tokens with enormous states don't decide alone. An attention is followed by the parent's own FFN, and an
FFN comes after the parent's own attention: decoupled, as the paper calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ffn_fusion.blockwise.stack import Block
from ffn_fusion.blockwise.states import FileStates, Slot
from ffn_fusion.processes import current
from ffn_fusion.puzzle.space import Entry
from ffn_fusion.repair.fit import SLOT, Windows


@dataclass(frozen=True)
class View:
    """One slot of states, read as if it were the only one."""

    states: FileStates
    slot: Slot
    dtype: torch.dtype

    def read(self, slot: Slot, windows: slice, tokens: slice = slice(None)) -> Tensor:
        """Return the state [n, t, D] in ``dtype``; the argument ``slot`` says nothing."""
        return self.states.read(self.slot, windows, tokens).to(self.dtype)


@dataclass(frozen=True)
class Lesson:
    """What an entry is solved, trained and judged on.

    Args:
        blocks: those of the entry that compute something, loaded.
        before: the parent's state before a block; of block ``entry.last + 1``, that after the entry's last one.
        attended: the parent's state after the attention of the entry's last block.
        windows: of this process.
        context: T.
    """

    entry: Entry
    blocks: Sequence[Block]
    before: Callable[[int], View]
    attended: View
    windows: Windows
    context: int

    @property
    def from_attention(self) -> bool:
        """Whether the entry is an FFN alone, which starts after the parent's own attention."""
        return self.entry.part == "ffn" and not any(block.side_by_side for block in self.blocks)

    @property
    def start(self) -> View:
        """The parent's state that the entry starts from."""
        return self.attended if self.from_attention else self.before(self.entry.first)

    @property
    def goal(self) -> View:
        """The parent's state after the entry's last block."""
        return self.before(self.entry.last + 1)

    def forward(self, state: Tensor) -> Tensor:
        """Return the state after the entry's blocks: [n, T, D] -> [n, T, D]."""
        if self.from_attention:
            return self._ffns(state)
        for block in self.blocks:
            added = block.contributions(state)
            state = state + added.attention + added.ffn
        return state

    def removed(self, state: Tensor) -> Tensor:
        """Return the state if what the entry changes did nothing, to judge errors by."""
        return self._ffns(state) if self.entry.part == "attention" else state

    def _ffns(self, state: Tensor) -> Tensor:
        for block in self.blocks:
            state = state + block.ffn(state)
        return state

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of the parameters."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def restore(self, before: Mapping[str, Tensor]) -> None:
        """Set the parameters to what they were."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(before[name])

    def round(self, dtype: torch.dtype) -> None:
        """Round the parameters to the dtype in which they are kept."""
        for parameter in self.parameters.values():
            parameter.data.copy_(parameter.data.to(dtype))

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What may be trained, by "number of the block" + "." + the family's key."""
        return dict(self._parameters())

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for k, part in self.entry.changes:
            for tensor, parameter in self.blocks[k].parameters(part):
                yield f"{k}.{tensor.key}", parameter

    def error(self, parts: Sequence[slice], forward: Callable[[Tensor], Tensor] | None = None) -> float:
        """Return the error over windows of all processes."""
        forward = forward or self.forward
        total, tokens = 0.0, 0
        with torch.no_grad():
            for part in parts:
                goal = self.goal.read(SLOT, part)
                total += float(relative_errors(forward(self.start.read(SLOT, part)), goal).double().sum())
                tokens += goal.shape[0] * goal.shape[1]
        found = current().gather([(total, tokens)])
        return sum(part for part, _ in found) / max(1, sum(count for _, count in found))


def relative_errors(state: Tensor, goal: Tensor) -> Tensor:
    """Return |goal - state|^2 / |goal|^2 of each token: twice [n, T, D] -> [n, T], in float32 at least."""
    wide = torch.promote_types(goal.dtype, torch.float32)
    goal, state = goal.to(wide), state.to(wide)
    least = torch.finfo(wide).tiny
    return (goal - state).square().sum(-1) / goal.square().sum(-1).clamp_min(least)
