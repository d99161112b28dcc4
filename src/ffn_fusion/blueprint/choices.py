"""The table of choices: what a child may have in place of some blocks of its parent, what that does, and what it costs.

Whatever decides (the exact programme, the greedy rule, a search) reads one :class:`ChoiceTable` and takes choices that
don't overlap; blocks that none of them covers stay as they are. Scores and costs add up over the choices taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple, Self

from ffn_fusion.blueprint.blocks import Block, Parent
from ffn_fusion.blueprint.blueprint import Blueprint

Runs = tuple[tuple[int, int], ...]
"""Fused runs as (first, last) parent blocks, inclusive."""


class Size(NamedTuple):
    """What was removed, counted: attentions dropped, FFN steps fused away, FFNs dropped."""

    attentions: int
    fused: int
    ffns: int = 0

    def plus(self, other: Size) -> Size:
        return Size(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Size) -> Size:
        return Size(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Costs:
    """What blocks of a child take.

    Args:
        steps: sequential sub-blocks: one for each attention, one for each (fused) FFN.
        parameters: weights, those of the norms included.
        weight_bytes: the same as stored.
        kv_bytes: bytes that each token adds to the KV cache.
    """

    steps: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


Price = Callable[[Parent, Block], Costs]
"""What a block of a child costs."""


def count_steps(parent: Parent, block: Block) -> Costs:
    """The price that needs no sizes: sequential steps alone."""
    return Costs(steps=block.attention.present + block.ffn.present)


@dataclass(frozen=True)
class Choice:
    """What the child may have in place of parent blocks ``first..last``. Make one with :meth:`ChoiceTable.choice`.

    Args:
        blocks: the child's blocks there, in order.
        score: the damage that it does, KL to the parent in nats a token; sums over choices are compared.
        error: standard error of ``score``, NaN where it isn't known.
        costs: what ``blocks`` take.
        dropped: parent blocks whose attention is gone.
        dropped_ffns: parent blocks whose FFN is gone.
    """

    first: int
    last: int
    blocks: tuple[Block, ...]
    score: float
    error: float
    costs: Costs
    dropped: tuple[int, ...] = ()
    dropped_ffns: tuple[int, ...] = ()

    @property
    def covers(self) -> range:
        """The parent blocks that it stands for."""
        return range(self.first, self.last + 1)

    @property
    def runs(self) -> Runs:
        return tuple((b.ffn.sources[0], b.ffn.sources[-1]) for b in self.blocks if len(b.ffn.sources) > 1)

    @property
    def merged(self) -> Runs:
        """The runs whose blocks are side by side."""
        return tuple(block.parent_blocks for block in self.blocks if block.side_by_side)

    @property
    def narrowed(self) -> tuple[int, ...]:
        """Parent blocks whose FFN is narrowed, or changed by itself in another way."""
        return tuple(b.ffn.sources[0] for b in self.blocks if b.ffn.changes and len(b.ffn.sources) == 1)

    @property
    def size(self) -> Size:
        return Size(len(self.dropped), sum(last - first for first, last in self.runs), len(self.dropped_ffns))

    @property
    def only_attention(self) -> bool:
        """Whether a single attention is dropped and nothing else."""
        return self.first == self.last and not (self.dropped_ffns or self.narrowed)

    def overlaps(self, other: Choice) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class ChoiceTable:
    """Every choice that there is for the blocks of ``parent``.

    ``price`` says what any block of a child costs; blocks that stay as they are do no damage and cost ``kept``.
    """

    parent: Parent
    price: Price = count_steps
    rows: tuple[Choice, ...] = ()

    @cached_property
    def kept(self) -> tuple[Costs, ...]:
        """What each block of the parent costs as it is."""
        return tuple(self.price(self.parent, block) for block in Blueprint.identity(self.parent).blocks)

    def choice(self, blocks: Sequence[Block], score: float, error: float = float("nan")) -> Choice:
        """These neighbouring blocks of a child as a choice."""
        first, last = blocks[0].parent_blocks[0], blocks[-1].parent_blocks[1]
        there = range(first, last + 1)
        attentions = {source for block in blocks for source in block.attention.sources}
        ffns = {source for block in blocks for source in block.ffn.sources}
        costs = sum((self.price(self.parent, block) for block in blocks), Costs())
        had = self.parent.blocks
        return Choice(
            first,
            last,
            tuple(blocks),
            score,
            error,
            costs,
            dropped=tuple(i for i in there if had[i].attention and i not in attentions),
            dropped_ffns=tuple(i for i in there if had[i].ffn and i not in ffns),
        )

    def where(self, wanted: Callable[[Choice], bool]) -> Self:
        """The same table with those rows only."""
        return replace(self, rows=tuple(filter(wanted, self.rows)))

    def saved(self, choice: Choice) -> Costs:
        """What the choice saves, against its blocks as they are."""
        return sum((self.kept[i] for i in choice.covers), Costs()) - choice.costs


@dataclass(frozen=True)
class Selection:
    """Choices that don't overlap, in order: a whole child."""

    choices: tuple[Choice, ...]

    @property
    def score(self) -> float:
        """The sum of their damages."""
        return sum(choice.score for choice in self.choices)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Parent blocks whose attention is gone."""
        return tuple(i for choice in self.choices for i in choice.dropped)

    @property
    def runs(self) -> Runs:
        return tuple(run for choice in self.choices for run in choice.runs)

    @property
    def merged(self) -> Runs:
        """The runs whose blocks are side by side."""
        return tuple(run for choice in self.choices for run in choice.merged)

    @property
    def size(self) -> Size:
        total = Size(0, 0)
        for choice in self.choices:
            total = total.plus(choice.size)
        return total

    def blueprint(self, parent: Parent) -> Blueprint:
        """The child that has these choices and is its parent elsewhere."""
        covered = {i for choice in self.choices for i in choice.covers}
        kept = [block for block in Blueprint.identity(parent).blocks if block.parent_blocks[0] not in covered]
        chosen = [block for choice in self.choices for block in choice.blocks]
        return Blueprint(parent=parent, blocks=tuple(sorted([*kept, *chosen], key=lambda block: block.parent_blocks)))
