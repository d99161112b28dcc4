"""The choice of runs against brute force: every possible plan of a small model."""

from __future__ import annotations

import numpy as np
import pytest
from every_plan import every_plan, least_of_every_plan, random_evidence, size_of, widths
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import damage, make_evidence
from makers import llama_config

from ffn_fusion.analysis.cost_count import steps
from ffn_fusion.analysis.evidence import Evidence, Stretch
from ffn_fusion.analysis.plan import plan
from ffn_fusion.analysis.runs import Frontier, Move, Selection, made_of, possible_moves
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint, apply
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import read_spec


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


@given(random_moves(), st.sets(st.integers(0, 6), max_size=2))
def test_frontier_is_the_best_of_every_plan(case: tuple[int, list[Move]], must_change: set[int]) -> None:
    blocks, moves = case
    must_change &= set(range(blocks))
    best = least_of_every_plan(
        way for way in every_plan(blocks, moves) if must_change <= {i for move in way for i in move.blocks}
    )
    frontier = Frontier(blocks, moves, blocks, must_change)
    reached = {(int(n), int(f)) for n, f in np.argwhere(np.isfinite(frontier.damage))}
    assert reached == set(best)
    for (n, f), least in best.items():
        selection = frontier.selection(n, f)
        assert selection.damage == pytest.approx(least, abs=1e-9)
        assert frontier.damage[n, f] == pytest.approx(least, abs=1e-9)
        assert (len(selection.dropped), selection.fused_steps) == (n, f)
        ends = [-1, *(m.last for m in selection.moves)]
        assert all(m.first > end for m, end in zip(selection.moves, ends, strict=False))


@given(random_evidence(10), widths, st.integers(1, 20), st.booleans())
def test_a_budget_of_steps_is_met_with_the_least_damage(
    evidence: Evidence, max_width: int | None, most: int, repaired: bool
) -> None:
    blocks = len(evidence.parent.blocks)
    spec = read_spec(llama_config(num_hidden_layers=blocks, intermediate_size=10))
    budget = PlanSettings(steps=most, max_damage=9, max_width=max_width, repair=repaired)
    best = least_of_every_plan(every_plan(blocks, possible_moves(evidence, 9, max_width, repaired)))
    fewest = min(2 * blocks - n - f for n, f in best)
    if most < fewest:
        with pytest.raises(BlueprintError, match=f"{fewest} is the fewest"):
            plan(spec, evidence, budget)
        return
    made = plan(spec, evidence, budget)
    assert steps(made.blueprint) <= most
    least = min(damage for (n, f), damage in best.items() if 2 * blocks - n - f <= most)
    assert made.selection.damage == pytest.approx(least, abs=1e-9)
    assert all(made.blueprint.width(block) <= (max_width or 1000) for block in made.blueprint.blocks)


@given(random_evidence(), widths)
def test_a_child_is_counted_as_the_cheapest_moves_that_make_it(evidence: Evidence, max_width: int | None) -> None:
    moves = possible_moves(evidence, 9, max_width)
    cheapest: dict[Blueprint, float] = {}
    identity = Blueprint.identity(evidence.parent)
    for way in every_plan(len(evidence.parent.blocks), moves):
        chosen = Selection(tuple(way))
        child = apply(identity, chosen.dropped, chosen.runs)
        cheapest[child] = min(cheapest.get(child, np.inf), chosen.damage)
    for child, least in cheapest.items():
        made = made_of(child, moves)
        assert made is not None
        assert made.damage == pytest.approx(least, abs=1e-9)
        assert apply(identity, made.dropped, made.runs) == child


def stretch(first: int, last: int, fused_last: int, kl: float, *, keeps: bool = False) -> Stretch:
    return Stretch(first=first, last=last, fused_last=fused_last, keeps_attention=keeps, damage=damage(kl))


def test_a_child_that_wasn_t_measured_has_no_count() -> None:
    evidence = make_evidence(6, [stretch(1, 3, 2, 0.1)])
    identity = Blueprint.identity(evidence.parent)
    moves = possible_moves(evidence, 1, None)
    assert made_of(apply(identity, (1, 2, 3), [(1, 2)]), moves) is not None
    assert made_of(apply(identity, (1, 2, 3), [(1, 3)]), moves) is None
    assert made_of(apply(identity, (1, 2), [(1, 2)]), moves) is None
    assert made_of(identity, moves) == Selection(())


@given(random_evidence(), st.booleans())
def test_a_move_does_the_damage_that_counts(evidence: Evidence, repaired: bool) -> None:
    """That of the repaired change where it was measured and the child will be repaired, else the plain one."""
    moves = possible_moves(evidence, 2.5, None, repaired)
    rows = [*evidence.importance, *evidence.stretches]
    counts = [row.repaired.kl if repaired and row.repaired else row.damage.kl for row in rows]
    alone = len(evidence.importance)
    wanted = counts[:alone] + [kl for kl in counts[alone:] if kl <= 2.5]
    assert [move.damage for move in moves] == wanted


def test_what_is_cheap_repaired_is_chosen() -> None:
    dear, cheap = stretch(1, 3, 2, 0.4), stretch(4, 6, 5, 0.2)
    stretches = [dear.model_copy(update={"repaired": damage(0.05)}), cheap.model_copy(update={"repaired": damage(0.1)})]
    evidence = make_evidence(8, stretches, kl=[1.0] * 8)
    spec = read_spec(llama_config(num_hidden_layers=8))
    chosen = [
        plan(spec, evidence, PlanSettings(drop_attention=3, fuse=1, repair=repaired)).blueprint.runs
        for repaired in (True, False)
    ]
    assert chosen == [((1, 2),), ((4, 5),)]


def test_catastrophes_are_no_moves() -> None:
    evidence = make_evidence(6, [stretch(1, 3, 2, 0.6)])
    assert not [move for move in possible_moves(evidence, 0.5, None) if move.stretch]
    assert [move for move in possible_moves(evidence, 0.7, None) if move.stretch]


def test_wide_runs_are_split() -> None:
    evidence = make_evidence(6, [stretch(0, 4, 4, 0.1, keeps=True)], width=100)
    (move,) = [move for move in possible_moves(evidence, 1, 200) if move.stretch]
    assert move.pieces == ((0, 1), (2, 3))
    assert move.fused_steps == 2
    assert move.dropped == (1, 2, 3, 4)


@pytest.mark.parametrize(("pieces_kl", "runs"), [(0.04, ((0, 1), (2, 4))), (0.06, ((0, 2), (3, 4)))])
def test_a_split_is_chosen_by_what_its_pieces_did(pieces_kl: float, runs: tuple[tuple[int, int], ...]) -> None:
    """Blocks 0-4 were measured whole and would be cut behind 2; cut behind 1 they were measured piece by piece."""
    pieces = [stretch(0, 1, 1, pieces_kl, keeps=True), stretch(2, 4, 4, pieces_kl)]
    whole = stretch(0, 4, 4, 0.1, keeps=True)
    evidence = make_evidence(6, [whole, *pieces], width=100, kl=[1.0] * 6)
    found = Frontier(6, possible_moves(evidence, 1, 300), 6).selection(4, 3)
    assert found.runs == runs
    assert found.damage == pytest.approx(min(0.1, 2 * pieces_kl))


def test_an_ffn_too_wide_to_fuse_rules_out_its_stretches_alone() -> None:
    evidence = make_evidence(8, [stretch(0, 2, 1, 0.1), stretch(4, 6, 5, 0.2)], width=100)
    wide = evidence.parent.blocks[0].model_copy(update={"ffn_width": 900})
    parent = evidence.parent.model_copy(update={"blocks": (wide, *evidence.parent.blocks[1:])})
    evidence = evidence.model_copy(update={"parent": parent})
    assert [move.pieces for move in possible_moves(evidence, 1, 200) if move.stretch] == [((4, 5),)]
    with pytest.raises(BlueprintError, match="900 wide"):
        possible_moves(evidence.model_copy(update={"stretches": evidence.stretches[:1]}), 1, 200)
    assert size_of(possible_moves(evidence, 1, None)) == (8 + 3 + 3, 2)
