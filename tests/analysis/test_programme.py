"""The exact programme against brute force: every possible plan of a small model."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from every_plan import (
    damage_of,
    every_plan,
    evidence_of_every_kind,
    least_of_every_plan,
    random_evidence,
    size_of,
    widths,
)
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import damage, make_evidence
from makers import block_spec, llama_config

from ffn_fusion.analysis.choices import choices_of
from ffn_fusion.analysis.cost_count import costs_of, counted_speedup, steps
from ffn_fusion.analysis.evidence import Evidence, MeasuredRun
from ffn_fusion.analysis.plan import plan
from ffn_fusion.analysis.programme import Frontier, least_that_saves, made_of
from ffn_fusion.analysis.programme import size_of as size_of_child
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Selection, Size
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import read_spec
from ffn_fusion.families.layout import model_tensors
from ffn_fusion.search.candidates import from_choices
from ffn_fusion.search.search import search
from ffn_fusion.search.settings import SearchSettings


def choice_of(
    table: ChoiceTable,
    first: int,
    last: int,
    score: float,
    fused: tuple[int, int] | None = None,
    *,
    keeps: bool = False,
) -> Choice:
    """Attentions first..last dropped (but for the first, if it ``keeps`` its own), FFNs ``fused`` fused."""
    child = Blueprint.identity(table.parent).apply(range(first + keeps, last + 1), [fused] if fused else [])
    return table.choice([b for b in child.blocks if first <= b.parent_blocks[0] <= last], score)


@st.composite
def random_tables(draw: st.DrawFn) -> ChoiceTable:
    blocks = draw(st.integers(1, 7))
    damage = st.floats(0, 5, allow_nan=False)
    table = ChoiceTable(make_evidence(blocks).parent)
    rows = [choice_of(table, i, i, draw(damage)) for i in range(blocks) if draw(st.booleans())]
    for first in range(blocks):
        for last in range(first + 1, min(first + 4, blocks)):
            if draw(st.booleans()):
                fused = first, draw(st.integers(first + 1, last))
                rows.append(choice_of(table, first, last, draw(damage), fused, keeps=draw(st.booleans())))
    return replace(table, rows=tuple(rows))


@given(random_tables(), st.sets(st.integers(0, 6), max_size=2))
def test_frontier_is_the_best_of_every_plan(table: ChoiceTable, must_change: set[int]) -> None:
    blocks = len(table.parent.blocks)
    must_change &= set(range(blocks))
    best = least_of_every_plan(
        way for way in every_plan(table) if must_change <= {i for choice in way for i in choice.covers}
    )
    frontier = Frontier(table, Size(blocks, blocks), must_change)
    reached = {Size(*map(int, at)) for at in np.argwhere(np.isfinite(frontier.damage))}
    assert reached == set(best)
    for size, least in best.items():
        selection = frontier.selection(size)
        assert selection.score == pytest.approx(least, abs=1e-9)
        assert frontier.damage[size] == pytest.approx(least, abs=1e-9)
        assert selection.size == size
        ends = [-1, *(choice.last for choice in selection.choices)]
        assert all(choice.first > end for choice, end in zip(selection.choices, ends, strict=False))


@given(random_evidence(10), widths, st.integers(1, 20), st.booleans())
def test_a_budget_of_steps_is_met_with_the_least_damage(
    evidence: Evidence, max_width: int | None, most: int, repaired: bool
) -> None:
    blocks = len(evidence.parent.blocks)
    spec = read_spec(llama_config(num_hidden_layers=blocks, intermediate_size=10))
    budget = PlanSettings(steps=most, max_damage=9, max_width=max_width, repair=repaired)
    best = least_of_every_plan(every_plan(choices_of(evidence, 9, max_width, repaired=repaired)))
    fewest = min(2 * blocks - sum(size) for size in best)
    if most < fewest:
        with pytest.raises(BlueprintError, match=f"{fewest} is the fewest"):
            plan(spec, evidence, budget)
        return
    made = plan(spec, evidence, budget)
    assert steps(made.blueprint) <= most
    least = min(damage for size, damage in best.items() if 2 * blocks - sum(size) <= most)
    assert made.selection.score == pytest.approx(least, abs=1e-9)
    assert all(made.blueprint.width(block) <= (max_width or 1000) for block in made.blueprint.blocks)


TARGETS = {"steps": st.integers(1, 20), "speedup": st.floats(1.01, 2), "parameters": st.floats(0.5, 0.99)}


@pytest.mark.parametrize("target", TARGETS)
@given(evidence=evidence_of_every_kind(), data=st.data())
def test_a_target_is_met_with_the_least_damage_of_choices_of_every_kind(
    target: str, evidence: Evidence, data: st.DataObject
) -> None:
    """FFNs dropped and narrowed beside attentions and runs, against every possible child."""
    value = data.draw(TARGETS[target])
    spec = read_spec(llama_config(num_hidden_layers=len(evidence.parent.blocks), intermediate_size=1024))
    narrow = () if target == "steps" else (0.75, 0.5)
    budget = PlanSettings.model_validate({"drop_ffn": "auto", "narrow": narrow, "max_damage": 9, target: value})
    total = sum(prod(shape) for shape in model_tensors(spec).values())

    def meets(child: Blueprint) -> bool:
        if target == "steps":
            return steps(child) <= value
        if target == "speedup":
            return counted_speedup(spec, child) >= value
        saved = costs_of(spec, Blueprint.identity(child.parent)) - costs_of(spec, child)
        return total - saved.parameters <= value * total

    table = choices_of(evidence, 9, ffns=True, narrow=narrow)
    fitting = [damage_of(way) for way in every_plan(table) if meets(Selection(way).blueprint(evidence.parent))]
    widths_there = {row.width for row in evidence.narrowed}
    measured = any(row.part == "ffn" for row in evidence.removals) and (not narrow or widths_there == {768, 512})
    if not measured or not fitting:
        with pytest.raises(BlueprintError, match=r"measured|out of reach"):
            plan(spec, evidence, budget)
        return
    made = plan(spec, evidence, budget)
    assert meets(made.blueprint)
    assert made.selection.score == pytest.approx(min(fitting), abs=1e-9)
    child = made_of(made.blueprint, table)
    assert child is not None
    assert child.score == pytest.approx(made.selection.score, abs=1e-9)


@given(evidence_of_every_kind())
def test_counts_of_attentions_steps_and_ffns_are_met_with_the_least_damage(evidence: Evidence) -> None:
    table = choices_of(evidence, 9, ffns=True)
    best = least_of_every_plan(every_plan(table))
    frontier = Frontier(table, Size(10, 10, 4))
    assert {Size(*map(int, at)) for at in np.argwhere(np.isfinite(frontier.damage))} == set(best)
    for size, least in best.items():
        selection = frontier.selection(size)
        assert selection.size == size == size_of_child(selection.blueprint(evidence.parent))
        assert selection.score == pytest.approx(least, abs=1e-9)


@given(random_evidence(), widths)
def test_a_child_is_counted_as_the_cheapest_choices_that_make_it(evidence: Evidence, max_width: int | None) -> None:
    table = choices_of(evidence, 9, max_width)
    cheapest: dict[Blueprint, float] = {}
    identity = Blueprint.identity(evidence.parent)
    for way in every_plan(table):
        chosen = Selection(way)
        child = chosen.blueprint(evidence.parent)
        assert child == identity.apply(chosen.dropped, chosen.runs)
        cheapest[child] = min(cheapest.get(child, np.inf), chosen.score)
    for child, least in cheapest.items():
        made = made_of(child, table)
        assert made is not None
        assert made.score == pytest.approx(least, abs=1e-9)
        assert made.blueprint(evidence.parent) == child


def run(first: int, last: int, fused_last: int, kl: float, *, keeps: bool = False) -> MeasuredRun:
    return MeasuredRun(first=first, last=last, fused_last=fused_last, keeps_attention=keeps, damage=damage(kl))


def test_a_child_that_wasn_t_measured_has_no_count() -> None:
    evidence = make_evidence(6, [run(1, 3, 2, 0.1)])
    identity = Blueprint.identity(evidence.parent)
    table = choices_of(evidence, 1)
    assert made_of(identity.apply((1, 2, 3), [(1, 2)]), table) is not None
    assert made_of(identity.apply((1, 2, 3), [(1, 3)]), table) is None
    assert made_of(identity.apply((1, 2), [(1, 2)]), table) is None
    assert made_of(identity, table) == Selection(())


@given(random_evidence(), st.booleans())
def test_a_choice_does_the_damage_that_counts(evidence: Evidence, repaired: bool) -> None:
    """That of the repaired change where it was measured and the child will be repaired, else the plain one."""
    table = choices_of(evidence, 2.5, repaired=repaired)
    rows = [*evidence.importance, *evidence.runs]
    counts = [row.repaired.kl if repaired and row.repaired else row.damage.kl for row in rows]
    alone = len(evidence.importance)
    wanted = counts[:alone] + [kl for kl in counts[alone:] if kl <= 2.5]
    assert [choice.score for choice in table.rows] == wanted


def test_what_is_cheap_repaired_is_chosen() -> None:
    dear, cheap = run(1, 3, 2, 0.4), run(4, 6, 5, 0.2)
    runs = [dear.model_copy(update={"repaired": damage(0.05)}), cheap.model_copy(update={"repaired": damage(0.1)})]
    evidence = make_evidence(8, runs, kl=[1.0] * 8)
    spec = read_spec(llama_config(num_hidden_layers=8))
    chosen = [
        plan(spec, evidence, PlanSettings(drop_attention=3, fuse=1, repair=repaired)).blueprint.runs
        for repaired in (True, False)
    ]
    assert chosen == [((1, 2),), ((4, 5),)]


def test_catastrophes_are_no_choices() -> None:
    evidence = make_evidence(6, [run(1, 3, 2, 0.6)])
    assert not any(choice.runs for choice in choices_of(evidence, 0.5).rows)
    assert any(choice.runs for choice in choices_of(evidence, 0.7).rows)


def test_wide_runs_are_split() -> None:
    evidence = make_evidence(6, [run(0, 4, 4, 0.1, keeps=True)], width=100)
    (choice,) = choices_of(evidence, 1, 200).where(lambda choice: bool(choice.runs)).rows
    assert choice.runs == ((0, 1), (2, 3))
    assert choice.size == (4, 2, 0)
    assert choice.dropped == (1, 2, 3, 4)


@pytest.mark.parametrize(("parts_kl", "runs"), [(0.04, ((0, 1), (2, 4))), (0.06, ((0, 2), (3, 4)))])
def test_a_split_is_chosen_by_what_its_parts_did(parts_kl: float, runs: tuple[tuple[int, int], ...]) -> None:
    """Blocks 0-4 were measured whole and would be cut behind 2; cut behind 1 they were measured part by part."""
    parts = [run(0, 1, 1, parts_kl, keeps=True), run(2, 4, 4, parts_kl)]
    whole = run(0, 4, 4, 0.1, keeps=True)
    evidence = make_evidence(6, [whole, *parts], width=100, kl=[1.0] * 6)
    found = Frontier(choices_of(evidence, 1, 300), Size(6, 6)).selection(Size(4, 3))
    assert found.runs == runs
    assert found.score == pytest.approx(min(0.1, 2 * parts_kl))


def test_an_ffn_too_wide_to_fuse_rules_out_its_runs_alone() -> None:
    evidence = make_evidence(8, [run(0, 2, 1, 0.1), run(4, 6, 5, 0.2)], width=100)
    wide = block_spec(ffn_width=900, kv_heads=0)
    parent = evidence.parent.model_copy(update={"blocks": (wide, *evidence.parent.blocks[1:])})
    evidence = evidence.model_copy(update={"parent": parent})
    assert [choice.runs for choice in choices_of(evidence, 1, 200).rows if choice.runs] == [((4, 5),)]
    with pytest.raises(BlueprintError, match="900 wide"):
        choices_of(evidence.model_copy(update={"runs": evidence.runs[:1]}), 1, 200)
    assert size_of(choices_of(evidence, 1).rows) == (8 + 3 + 3, 2, 0)


@given(evidence_of_every_kind(), st.integers(0, 12))
def test_the_search_agrees_with_the_exact_programme(evidence: Evidence, saved: int) -> None:
    """What is summed, and what is chosen from it, is the same; so is a budget that is out of reach."""
    table = choices_of(evidence, np.inf, ffns=True, narrow=(0.75, 0.5))
    steps = sum(costs.steps for costs in table.kept)
    exact, _ = least_that_saves(table, lambda choice: table.saved(choice).steps, saved)
    of = from_choices(table)
    if steps <= saved:
        return
    asked = SearchSettings(max_steps=str(steps - saved))  # type: ignore[arg-type]
    if exact is None:
        with pytest.raises(BlueprintError, match="sequential steps"):
            search(of, asked)
    else:
        found = search(of, asked).found[0]
        assert found.score == pytest.approx(exact.score, abs=1e-7)
        assert found.values["steps"] <= steps - saved
