"""The work of a sweep, counted before it begins: evaluations, FLOPs, states. No weights are read.

Shapes: T tokens per window, D hidden, H heads, d head_dim. All counts are for one window.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ffn_fusion.blockwise.edits import Cost, Edit
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import sub_block_parameters

_STATES_OF_ROW = 16  # hidden states of one token at a time: inputs, norms, q, k, v, contributions
_WIDTHS_OF_ROW = 4  # FFN activations: gate, its activation, up, their product


@dataclass(frozen=True)
class Work:
    """The work of a sweep, block by block, for one window of ``context`` tokens.

    ``attentions`` and ``ffns`` are evaluations at each block, ``states`` the slots written there; ``heads`` is the
    number of last states the LM head reads, including the parent's. ``beside`` are FLOPs of edits other than
    evaluations, ``once`` those that do not depend on the number of windows that go through together. ``held`` is the
    largest number of bytes that edits keep in memory at a block, ``row_held`` that per token of a matrix product;
    ``windows_wanted`` is the number of windows that should go through together; if more than one, at least two must.
    """

    spec: ModelSpec
    context: int
    attentions: tuple[int, ...]
    ffns: tuple[int, ...]
    states: tuple[int, ...]
    heads: int
    beside: tuple[float, ...]
    once: tuple[float, ...]
    held: int
    row_held: int
    windows_wanted: int

    @property
    def block_flops(self) -> float:
        """FLOPs inside the blocks, without those that are done once."""
        return sum(self.flops_at(i) for i in range(len(self.ffns)))

    @property
    def head_flops(self) -> float:
        return 2.0 * self.heads * (self.context - 1) * self.spec.vocab_size * self.spec.hidden_size

    @property
    def block_evaluations(self) -> float:
        """Attentions and FFNs evaluated, in whole blocks."""
        return (sum(self.attentions) + sum(self.ffns)) / 2

    def flops_at(self, i: int) -> float:
        """FLOPs at block i, without those that are done once."""
        attentions = self.attentions[i] * attention_flops(self.spec, i, self.context)
        return attentions + self.ffns[i] * ffn_flops(self.spec, i, self.context) + self.beside[i]


def attention_flops(spec: ModelSpec, i: int, context: int) -> float:
    """Return the FLOPs of one attention on one window: its matrices, and scores and values [H, T, T] (counted in full,
    as computed).
    """
    part = spec.blocks[i].attention
    if part is None:
        return 0.0
    pairs = 4.0 * context * context * part.heads * spec.head_dim
    return 2.0 * context * sub_block_parameters(spec, part) + pairs


def ffn_flops(spec: ModelSpec, i: int, context: int) -> float:
    return 2.0 * context * sub_block_parameters(spec, spec.blocks[i].ffn)


def block_flops(spec: ModelSpec, i: int, context: int) -> float:
    """Return the FLOPs of one block on one window."""
    return attention_flops(spec, i, context) + ffn_flops(spec, i, context)


def row_bytes(hidden: int, width: int, dtype: torch.dtype) -> int:
    """Return the bytes of activations that one token takes in a block with an FFN of this width."""
    return (_STATES_OF_ROW * hidden + _WIDTHS_OF_ROW * width) * dtype.itemsize


def count_work(spec: ModelSpec, edits: Collection[Edit], *, scored: int, context: int) -> Work:
    """Count the work of ``sweep`` with these edits, of which ``scored`` are compared at the head."""
    attentions, ffns, states, costs = [], [], [], []
    for i in range(len(spec.blocks)):
        live = sum(edit.last < i for edit in edits)
        under_way = [edit for edit in edits if edit.first <= i <= edit.last]
        costs.append(_costs(under_way, i))
        attentions.append(1 + live + sum(cost.attentions for cost in costs[i]))
        ffns.append(1 + live + sum(cost.ffns for cost in costs[i]))
        states.append(1 + live + sum(1 if i == edit.last else edit.carries(i) for edit in under_way))
    return Work(
        spec,
        context,
        tuple(attentions),
        tuple(ffns),
        tuple(states),
        scored + 1,
        beside=tuple(sum(cost.flops for cost in at) for at in costs),
        once=tuple(sum(cost.once for cost in at) for at in costs),
        held=max(sum(cost.held for cost in at) for at in costs),
        row_held=max(sum(cost.row for cost in at) for at in costs),
        windows_wanted=max((edit.windows_wanted for edit in edits), default=1),
    )


def _costs(edits: Sequence[Edit], i: int) -> list[Cost]:
    """Return the costs of all edits at block i; shared work is counted once."""
    each = [cost for edit in edits for cost in edit.costs(i)]
    return [cost for cost in each if cost.shared is None] + list({c.shared: c for c in each if c.shared}.values())
