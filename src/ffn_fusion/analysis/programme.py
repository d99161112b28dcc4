"""The exact programme: which choices make the child of a size, or within a budget, that does the least damage.

A child is a way through the blocks of its parent: keep a block, or take a choice that covers it and maybe the next.
Damages, each measured with that choice alone, are added up. The table

    best[i][n, f, d] = least damage of blocks 0..i-1 with n attentions dropped, f FFN steps fused away, d FFNs dropped

is filled from the front. It is exact for the sum: the tests compare it with every possible child of small models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.blueprint import Block, Blueprint, FusedFfn, WideAttention
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Selection, Size


class Frontier:
    """Least damage for every size at once, with the child that has it.

    Args:
        table: the choices that may be taken.
        most: the largest size of interest.
        must_change: blocks that can't be kept as they are, so that a choice covers each of them.
    """

    def __init__(self, table: ChoiceTable, most: Size, must_change: Collection[int] = ()) -> None:
        blocks, self._choices = len(table.parent.blocks), table.rows
        shape = tuple(count + 1 for count in most)
        best: list[npt.NDArray[np.float64]] = [np.full(shape, np.inf) for _ in range(blocks + 1)]
        self._via = [np.full(shape, -1, dtype=np.int32) for _ in range(blocks + 1)]
        best[0][0, 0, 0] = 0.0
        for end, ending in enumerate(_by_end(table), start=1):
            if end - 1 not in must_change:
                best[end][:] = best[end - 1]  # keep block end-1 as it is
            for k in ending:
                choice = self._choices[k]
                n, f, d = choice.size
                if n > most.attentions or f > most.fused or d > most.ffns:
                    continue
                reached = np.full_like(best[end], np.inf)
                before = best[choice.first][: shape[0] - n, : shape[1] - f, : shape[2] - d]
                reached[n:, f:, d:] = before + choice.score
                better = reached < best[end]
                best[end][better] = reached[better]
                self._via[end][better] = k
        self.damage = best[blocks]
        """One more than ``most`` along each axis; inf where no child has exactly this size."""

    def selection(self, size: Size) -> Selection:
        """The choices that do the least damage of all with exactly this size."""
        assert np.isfinite(self.damage[size])
        taken = []
        end, left = len(self._via) - 1, size
        while end > 0:
            k = int(self._via[end][left])
            if k < 0:
                end -= 1
                continue
            choice = self._choices[k]
            taken.append(choice)
            end, left = choice.first, left.minus(choice.size)
        assert not any(left)
        return Selection(tuple(reversed(taken)))


@dataclass(frozen=True)
class _Labels:
    """Ways through the blocks before some block, of which none saves more for less damage than another.

    Each came from one of the labels at the first block of ``choice``; -1: from the block before, which is kept.
    """

    saved: npt.NDArray[Any]
    damage: npt.NDArray[np.float64]
    choice: npt.NDArray[np.int32]
    origin: npt.NDArray[np.int32]


def least_that_saves(
    table: ChoiceTable, saving: Callable[[Choice], float], target: float
) -> tuple[Selection | None, float]:
    """The choices of least summed damage that save ``target`` or more of anything that adds up.

    Exact as well: of two ways to one block, only one that saves no more and does no less damage is forgotten.

    Args:
        saving: what a choice saves, at least 0: whole numbers, or floats where rounding doesn't matter.

    Returns:
        None if the target is out of reach, and the most that can be saved (the target itself if it is in reach).
    """
    fronts = [_Labels(np.zeros(1), np.zeros(1), np.full(1, -1, np.int32), np.zeros(1, np.int32))]
    for end, ending in enumerate(_by_end(table), start=1):
        ways = [(fronts[end - 1], -1, 0.0, 0.0)]  # keep block end-1 as it is
        ways += [(fronts[table.rows[k].first], k, saving(table.rows[k]), table.rows[k].score) for k in ending]
        fronts.append(_best_of(ways, target))
    saved = fronts[-1].saved
    if saved[-1] < target:
        return None, float(saved[-1])
    taken = []
    end, at = len(fronts) - 1, len(saved) - 1
    while end > 0:
        k, at = int(fronts[end].choice[at]), int(fronts[end].origin[at])
        if k >= 0:
            taken.append(table.rows[k])
        end = table.rows[k].first if k >= 0 else end - 1
    return Selection(tuple(reversed(taken))), target


def _best_of(ways: list[tuple[_Labels, int, float, float]], target: float) -> _Labels:
    """All labels that (labels before, choice, its saving, its damage) lead to, without those that others beat."""
    saved = np.minimum(np.concatenate([before.saved + more for before, _, more, _ in ways]), target)
    damage = np.concatenate([before.damage + more for before, _, _, more in ways])
    choice = np.concatenate([np.full(len(before.saved), k, np.int32) for before, k, _, _ in ways])
    origin = np.concatenate([np.arange(len(before.saved), dtype=np.int32) for before, _, _, _ in ways])
    order = np.lexsort((-saved, damage))
    most_before = np.maximum.accumulate(saved[order])[:-1]
    order = order[np.concatenate([[True], saved[order][1:] > most_before])]
    return _Labels(saved[order], damage[order], choice[order], origin[order])


def _by_end(table: ChoiceTable) -> list[list[int]]:
    """For every block, the rows that end there."""
    found: list[list[int]] = [[] for _ in table.parent.blocks]
    for k, choice in enumerate(table.rows):
        found[choice.last].append(k)
    return found


def made_of(blueprint: Blueprint, table: ChoiceTable) -> Selection | None:
    """The choices of least summed damage that make exactly this child; None where no choices do.

    That gives any blueprint, however it was chosen, the damage that the exact programme would count for it.
    """
    here = [_essence(block) for block in blueprint.blocks]
    kept = [_essence(block) for block in Blueprint.identity(blueprint.parent).blocks]
    places = {block.parent_blocks[0]: k for k, block in enumerate(blueprint.blocks)}

    def belongs(choice: Choice) -> bool:
        k = places.get(choice.first)
        return k is not None and here[k : k + len(choice.blocks)] == [_essence(block) for block in choice.blocks]

    changed = {
        i
        for block, essence in zip(blueprint.blocks, here, strict=True)
        for i in range(block.parent_blocks[0], block.parent_blocks[1] + 1)
        if essence != kept[i]
    }
    size = size_of(blueprint)
    frontier = Frontier(table.where(belongs), size, changed)
    return frontier.selection(size) if np.isfinite(frontier.damage[size]) else None


def _essence(block: Block) -> tuple[object, ...]:
    """What a block is made of, whatever the convention of its norms."""
    kinds = (block.attention, block.ffn)
    merged = (FusedFfn, WideAttention)
    return block.parent_blocks, *(k.model_copy(update={"norm": "own"}) if isinstance(k, merged) else k for k in kinds)


def size_of(blueprint: Blueprint) -> Size:
    """What the child does without."""
    ffns = {source for block in blueprint.blocks for source in block.ffn.sources}
    return Size(
        len(blueprint.dropped_attentions),
        sum(last - first for first, last in blueprint.runs),
        sum(block.ffn is not None and i not in ffns for i, block in enumerate(blueprint.parent.blocks)),
    )
