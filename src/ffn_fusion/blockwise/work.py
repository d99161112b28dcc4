"""What a sweep has to do, counted before it begins: evaluations, FLOPs, states. No weights are read.

Shapes: T tokens a window, D hidden, H heads, d head_dim. Everything here is for one window; windows multiply.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ffn_fusion.blockwise.edits import Edit
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import sub_block_parameters


@dataclass(frozen=True)
class Work:
    """A sweep's work, block by block, for one window of ``context`` tokens.

    ``attentions`` and ``ffns`` are evaluations at each block, ``states`` the slots that are written there; ``heads``
    is how many last states the LM head reads, the parent's included.
    """

    spec: ModelSpec
    context: int
    attentions: tuple[int, ...]
    ffns: tuple[int, ...]
    states: tuple[int, ...]
    heads: int

    @property
    def block_flops(self) -> float:
        """FLOPs inside the blocks."""
        return sum(
            attentions * attention_flops(self.spec, i, self.context) + ffns * ffn_flops(self.spec, i, self.context)
            for i, (attentions, ffns) in enumerate(zip(self.attentions, self.ffns, strict=True))
        )

    @property
    def head_flops(self) -> float:
        return 2.0 * self.heads * (self.context - 1) * self.spec.vocab_size * self.spec.hidden_size

    @property
    def block_evaluations(self) -> float:
        """Attentions and FFNs evaluated, in whole blocks."""
        return (sum(self.attentions) + sum(self.ffns)) / 2

    def flops_at(self, i: int) -> float:
        """FLOPs at block i."""
        return self.attentions[i] * attention_flops(self.spec, i, self.context) + self.ffns[i] * ffn_flops(
            self.spec, i, self.context
        )


def attention_flops(spec: ModelSpec, i: int, context: int) -> float:
    """Of one attention on one window: its matrices, and scores and values [H, T, T] (counted whole, as computed)."""
    part = spec.blocks[i].attention
    if part is None:
        return 0.0
    pairs = 4.0 * context * context * spec.heads * spec.head_dim if part.kind == "attention" else 0.0
    return 2.0 * context * sub_block_parameters(spec, part) + pairs


def ffn_flops(spec: ModelSpec, i: int, context: int) -> float:
    return 2.0 * context * sub_block_parameters(spec, spec.blocks[i].ffn)


def count_work(spec: ModelSpec, edits: Collection[Edit], *, scored: int, context: int) -> Work:
    """The work of ``sweep`` with these edits, of which ``scored`` are compared at the head."""
    L = len(spec.blocks)
    attentions, ffns, states = [], [], []
    for i in range(L):
        live = sum(edit.last < i for edit in edits)
        under_way = [edit for edit in edits if edit.first <= i <= edit.last]
        extra = [edit.work(i) for edit in under_way]
        attentions.append(1 + live + sum(a for a, _ in extra))
        ffns.append(1 + live + sum(f for _, f in extra))
        states.append(1 + live + sum(1 if i == edit.last else max(1, edit.carries) for edit in under_way))
    return Work(spec, context, tuple(attentions), tuple(ffns), tuple(states), scored + 1)
