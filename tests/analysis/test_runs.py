"""The choice of runs against brute force: every possible plan of a small model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import damage, make_evidence

from ffn_fusion.analysis.evidence import Stretch
from ffn_fusion.analysis.runs import Frontier, Move, possible_moves


def every_plan(blocks: int, moves: Sequence[Move], at: int = 0) -> Iterator[list[Move]]:
    """Every set of moves that don't overlap, in order."""
    if at >= blocks:
        yield []
        return
    yield from every_plan(blocks, moves, at + 1)
    for move in moves:
        if move.first == at:
            for rest in every_plan(blocks, moves, move.last + 1):
                yield [move, *rest]


@st.composite
def random_moves(draw: st.DrawFn) -> tuple[int, list[Move]]:
    blocks = draw(st.integers(1, 7))
    damage = st.floats(0, 5, allow_nan=False)
    moves = [Move(i, i, draw(damage), (i,)) for i in range(blocks) if draw(st.booleans())]
    for first in range(blocks):
        for last in range(first + 1, min(first + 4, blocks)):
            if draw(st.booleans()):
                keeps = draw(st.booleans())
                fused_last = draw(st.integers(first + 1, last))
                dropped = tuple(range(first + keeps, last + 1))
                moves.append(Move(first, last, draw(damage), dropped, ((first, fused_last),)))
    return blocks, moves


@given(random_moves())
def test_frontier_is_the_best_of_every_plan(case: tuple[int, list[Move]]) -> None:
    blocks, moves = case
    best: dict[tuple[int, int], float] = {}
    for plan in every_plan(blocks, moves):
        size = (sum(len(m.dropped) for m in plan), sum(m.fused_steps for m in plan))
        best[size] = min(best.get(size, np.inf), sum(m.damage for m in plan))
    frontier = Frontier(blocks, moves, blocks)
    reached = {(int(n), int(f)) for n, f in np.argwhere(np.isfinite(frontier.damage))}
    assert reached == set(best)
    for (n, f), least in best.items():
        selection = frontier.selection(n, f)
        assert selection.damage == pytest.approx(least, abs=1e-9)
        assert frontier.damage[n, f] == pytest.approx(least, abs=1e-9)
        assert (len(selection.dropped), selection.fused_steps) == (n, f)
        ends = [-1, *(m.last for m in selection.moves)]
        assert all(m.first > end for m, end in zip(selection.moves, ends, strict=False))


def test_catastrophes_are_no_moves() -> None:
    evidence = make_evidence(6, [Stretch(first=1, last=3, fused_last=2, keeps_attention=False, damage=damage(0.6))])
    assert not [move for move in possible_moves(evidence, 0.5, None) if move.stretch]
    assert [move for move in possible_moves(evidence, 0.7, None) if move.stretch]


def test_wide_runs_are_split() -> None:
    stretch = Stretch(first=0, last=4, fused_last=4, keeps_attention=True, damage=damage(0.1))
    evidence = make_evidence(6, [stretch], width=100)
    (move,) = [move for move in possible_moves(evidence, 1, 200) if move.stretch]
    assert move.pieces == ((0, 1), (2, 3))
    assert move.fused_steps == 2
    assert move.dropped == (1, 2, 3, 4)
