"""Which attentions go and which runs are fused: the cheapest way by measured damage, exactly, for every budget at once.

A plan is a way through the blocks: keep a block, drop its attention alone, or take a measured stretch (attentions
dropped, FFNs fused). Damages (KL to the parent, each measured with that change alone) are added up. The table

    best[i][n, f] = least damage of blocks 0..i-1 with n attentions dropped and f FFN steps fused away

is filled from the front; it's exact for the sum, and a comparison with every possible plan is among the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ffn_fusion.analysis.evidence import Evidence, Stretch
from ffn_fusion.blueprint import Blueprint, split_run
from ffn_fusion.errors import BlueprintError


@dataclass(frozen=True)
class Move:
    """One choice for blocks first..last. ``stretch`` is None for an attention dropped alone."""

    first: int
    last: int
    damage: float
    dropped: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...] = ()
    stretch: Stretch | None = None

    @property
    def fused_steps(self) -> int:
        return sum(last - first for first, last in self.pieces)

    @property
    def steps_saved(self) -> int:
        """Sequential steps that the child is spared: attentions dropped and FFN steps fused away."""
        return len(self.dropped) + self.fused_steps

    @property
    def blocks(self) -> range:
        return range(self.first, self.last + 1)


@dataclass(frozen=True)
class Selection:
    """A plan by its moves, with the sum of their damages."""

    moves: tuple[Move, ...]

    @property
    def damage(self) -> float:
        return sum(move.damage for move in self.moves)

    @property
    def dropped(self) -> tuple[int, ...]:
        return tuple(i for move in self.moves for i in move.dropped)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        return tuple(piece for move in self.moves for piece in move.pieces)

    @property
    def fused_steps(self) -> int:
        return sum(move.fused_steps for move in self.moves)


def possible_moves(evidence: Evidence, max_damage: float, max_width: int | None, repaired: bool = True) -> list[Move]:
    """Everything measured that may be chosen: no stretch above ``max_damage``, runs split at ``max_width``.

    Damages are those of the repaired changes where they were measured, unless ``repaired`` is False.
    A split run was measured whole; split it's closer to the sequential form, so its damage is taken as the whole's.
    Pieces that were measured as stretches of their own are moves like any other, so they win where they did less.

    Raises:
        BlueprintError: every stretch holds an FFN that alone is wider than ``max_width``.
    """
    identity = Blueprint.identity(evidence.parent)
    too_wide: BlueprintError | None = None
    moves = [Move(row.block, row.block, max(row.judged(repaired).kl, 0.0), (row.block,)) for row in evidence.importance]
    for stretch in evidence.stretches:
        damage = stretch.judged(repaired).kl
        if damage > max_damage:
            continue
        try:
            pieces = split_run(identity, stretch.first, stretch.fused_last, max_width)
        except BlueprintError as error:
            too_wide = error
            continue
        fused = tuple(piece for piece in pieces if piece[1] > piece[0])
        had = tuple(i for i in stretch.dropped if evidence.parent.blocks[i].attention)
        if fused:
            moves.append(Move(stretch.first, stretch.last, max(damage, 0.0), had, fused, stretch))
    if too_wide and not any(move.stretch for move in moves):
        raise too_wide
    return moves


class Frontier:
    """Least damage for every pair (attentions dropped, FFN steps fused away), with the plan that has it.

    Args:
        blocks: of the parent.
        max_drop: most attentions that a plan drops.
        must_change: blocks that can't be kept as they are, so that a move covers each of them.
    """

    def __init__(self, blocks: int, moves: Sequence[Move], max_drop: int, must_change: Collection[int] = ()) -> None:
        steps = blocks  # more can't be fused away
        self._moves = moves
        best: list[npt.NDArray[np.float64]] = [np.full((max_drop + 1, steps + 1), np.inf) for _ in range(blocks + 1)]
        self._via = [np.full((max_drop + 1, steps + 1), -1, dtype=np.int32) for _ in range(blocks + 1)]
        best[0][0, 0] = 0.0
        by_end: list[list[int]] = [[] for _ in range(blocks)]
        for k, move in enumerate(moves):
            by_end[move.last].append(k)
        for end in range(1, blocks + 1):
            if end - 1 not in must_change:
                best[end][:] = best[end - 1]  # keep block end-1 as it is
            for k in by_end[end - 1]:
                move = moves[k]
                n, f = len(move.dropped), move.fused_steps
                if n > max_drop:
                    continue
                reached = np.full_like(best[end], np.inf)
                reached[n:, f:] = best[move.first][: max_drop + 1 - n, : steps + 1 - f] + move.damage
                better = reached < best[end]
                best[end][better] = reached[better]
                self._via[end][better] = k
        self.damage = best[blocks]
        """[max_drop + 1, blocks + 1]: inf where no plan has just so many."""

    def selection(self, dropped: int, fused_steps: int) -> Selection:
        """The plan with the least damage that drops and fuses just so many."""
        assert np.isfinite(self.damage[dropped, fused_steps])
        moves = []
        end, n, f = len(self._via) - 1, dropped, fused_steps
        while end > 0:
            k = int(self._via[end][n, f])
            if k < 0:
                end -= 1
                continue
            move = self._moves[k]
            moves.append(move)
            end, n, f = move.first, n - len(move.dropped), f - move.fused_steps
        assert (n, f) == (0, 0)
        return Selection(tuple(reversed(moves)))


def made_of(blueprint: Blueprint, moves: Sequence[Move]) -> Selection | None:
    """The moves of least summed damage that make just this child; None where no moves do.

    That gives any blueprint, whoever chose it, the damage that the exact programme would count for it.
    """
    dropped, runs = set(blueprint.dropped_attentions), blueprint.runs
    changed = dropped | {i for first, last in runs for i in range(first, last + 1)}

    def belongs(move: Move) -> bool:
        inside = tuple(run for run in runs if run[0] <= move.last and run[1] >= move.first)
        return set(move.dropped) == dropped & set(move.blocks) and move.pieces == inside

    ffns = {source for block in blueprint.blocks for source in block.ffn.sources}
    if ffns != {i for i, block in enumerate(blueprint.parent.blocks) if block.ffn}:
        return None  # no move drops an FFN
    if any(block.ffn.kind == "narrowed" for block in blueprint.blocks):
        return None  # nor narrows one
    size = len(dropped), sum(last - first for first, last in runs)
    frontier = Frontier(len(blueprint.parent.blocks), [move for move in moves if belongs(move)], size[0], changed)
    return frontier.selection(*size) if np.isfinite(frontier.damage[size]) else None
