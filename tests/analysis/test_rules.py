"""The rules that the exact programme is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from every_plan import random_evidence, widths
from hypothesis import assume, given
from hypothesis import strategies as st
from made_evidence import damage, make_evidence
from makers import block_spec

from ffn_fusion.analysis.choices import choices_of
from ffn_fusion.analysis.cost_count import steps
from ffn_fusion.analysis.evidence import Evidence, MeasuredRun
from ffn_fusion.analysis.greedy import greedy
from ffn_fusion.analysis.programme import Frontier
from ffn_fusion.analysis.rules import compare, control_plans
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Size

BUDGET = PlanSettings(max_damage=9)


def run(first: int, last: int, fused_last: int, kl: float, *, keeps: bool = False) -> MeasuredRun:
    return MeasuredRun(first=first, last=last, fused_last=fused_last, keeps_attention=keeps, damage=damage(kl))


def with_matrix(evidence: Evidence, entries: dict[tuple[int, int], float]) -> Evidence:
    """M[i, j] as given; 0.5 elsewhere above the diagonal, NaN below."""
    L = len(evidence.parent.blocks)
    matrix = np.where(np.triu(np.ones((L, L)), k=1) > 0, 0.5, np.nan)
    for place, value in entries.items():
        matrix[place] = value
    return evidence.model_copy(update={"matrices": {"block.mean": matrix.tolist()}})


@pytest.fixture
def evidence() -> Evidence:
    """Attentions 1, 2, 3 and 6, 7, 8 of ten matter least."""
    kl = [9, 0.1, 0.1, 0.1, 9, 9, 0.1, 0.1, 0.1, 9]
    runs = [run(1, 3, 2, 0.7), run(6, 8, 7, 0.8), run(0, 2, 1, 0.9, keeps=True)]
    return make_evidence(10, runs, kl=kl)


def child(evidence: Evidence, drop: tuple[int, ...], runs: list[tuple[int, int]]) -> Blueprint:
    return Blueprint.identity(evidence.parent).apply(drop, runs)


def test_controls_have_the_same_size(evidence: Evidence) -> None:
    blueprint = child(evidence, (1, 2, 3, 6), [(1, 2), (5, 6)])
    found = {control.name: control.blueprint for control in control_plans(blueprint, evidence, BUDGET)}
    assert list(found) == ["middle", "paper rule"]  # no measured changes drop 4 and fuse 2 steps away
    for control in found.values():
        assert len(control.dropped_attentions) == 4
        assert steps(control) == steps(blueprint)
    assert found["middle"].dropped_attentions == (3, 4, 5, 6)
    assert found["middle"].runs == ((3, 5),)
    assert found["paper rule"].dropped_attentions == (1, 2, 3, 6)
    assert found["paper rule"].runs == ((1, 3),)  # leaving the last out fuses too little


@pytest.mark.parametrize(
    ("entries", "runs"),
    [
        ({(6, 7): 0.1, (7, 8): 0.1}, ((6, 7),)),  # the mean over the square counts: 6-8 depend least
        ({(1, 2): 0.0, (6, 7): 0.1, (7, 8): 0.2, (6, 8): 0.1}, ((6, 7),)),
        ({(1, 3): 0.4}, ((1, 2),)),
        (None, ((1, 2),)),  # not measured: the front
    ],
)
def test_paper_rule_fuses_the_least_dependent_run_first(
    evidence: Evidence, entries: dict[tuple[int, int], float] | None, runs: tuple[tuple[int, int], ...]
) -> None:
    if entries is not None:
        evidence = with_matrix(evidence, entries)
    blueprint = child(evidence, tuple(range(6)), [(1, 2)])
    found = {control.name: control for control in control_plans(blueprint, evidence, BUDGET)}
    paper = found["paper rule"]
    assert paper.blueprint.dropped_attentions == (1, 2, 3, 6, 7, 8)
    assert paper.blueprint.runs == runs
    assert ("the front" in paper.meaning) == (entries is None)


@pytest.mark.parametrize(
    ("steps_fused", "runs"),
    [
        (2, ((1, 2), (6, 7))),  # each without its last FFN
        (3, ((1, 3), (6, 7))),  # the last joins where it must
        (5, ((0, 3), (5, 7))),  # and the block before as well
    ],
)
def test_the_last_ffn_joins_where_too_little_is_fused_without(
    evidence: Evidence, steps_fused: int, runs: tuple[tuple[int, int], ...]
) -> None:
    blueprint = child(evidence, tuple(range(1, 7)), [(1, 1 + steps_fused)])
    found = {control.name: control.blueprint for control in control_plans(blueprint, evidence, BUDGET)}
    assert found["paper rule"].runs == runs


def test_rules_keep_to_the_width(evidence: Evidence) -> None:
    blueprint = child(evidence, tuple(range(1, 7)), [(1, 2), (4, 5)])
    budget = PlanSettings(max_damage=9, max_width=2 * 48)
    for control in control_plans(blueprint, evidence, budget):
        assert all(last - first == 1 for first, last in control.blueprint.runs)
        assert steps(control.blueprint) == steps(blueprint)


def test_attention_free_blocks_of_the_parent_are_fused_without_dropping() -> None:
    """A Nemotron-NAS parent: nothing to drop, three attention-free blocks, and one whose FFN is linear before them."""
    blocks = [block_spec(attention="attention", ffn="gated", ffn_width=48)] * 8
    blocks[2] = block_spec(attention="attention", ffn="linear", ffn_width=0)
    blocks[3:6] = [block_spec(attention=None, ffn="gated", ffn_width=48)] * 3
    made = make_evidence(8, [run(3, 5, 4, 0.2)])
    parent = made.parent.model_copy(update={"blocks": tuple(blocks)})
    importance = tuple(row for row in made.removals if row.block not in (3, 4, 5))
    evidence = made.model_copy(update={"parent": parent, "removals": importance})
    found = compare(child(evidence, (), [(3, 4)]), evidence, BUDGET)
    assert [(row.name, row.dropped, row.runs) for row in found] == [
        ("exact programme", (), ((3, 4),)),
        ("paper rule", (), ((3, 4),)),
        ("greedy rule", (), ((3, 4),)),
    ]
    assert {row.damage for row in found} == {0.2}
    two = control_plans(child(evidence, (), [(3, 5)]), evidence, BUDGET)
    assert [control.blueprint.runs for control in two] == [((3, 5),)]


def test_a_rule_without_the_scores_it_needs_is_left_out(evidence: Evidence) -> None:
    """Stretches were measured, attentions alone were not; a person chose the child."""
    bare = evidence.model_copy(update={"removals": ()})
    found = control_plans(child(evidence, (1, 2, 3), [(1, 2)]), bare, BUDGET)
    assert [control.name for control in found] == ["middle", "greedy rule"]


def test_no_controls_without_fusing(evidence: Evidence) -> None:
    assert control_plans(child(evidence, (1,), []), evidence, BUDGET) == []
    assert [row.name for row in compare(child(evidence, (1,), []), evidence, BUDGET)] == ["exact programme"]


def test_comparison_counts_what_was_measured(evidence: Evidence) -> None:
    blueprint = child(evidence, (1, 2, 3), [(1, 2)])
    found = {row.name: row for row in compare(blueprint, evidence, PlanSettings(max_damage=0.75))}
    assert found["exact programme"].damage == pytest.approx(0.7)
    assert found["middle"].damage is None  # 3-5 was never measured
    assert found["paper rule"].damage == pytest.approx(0.7)
    assert found["greedy rule"].damage == pytest.approx(0.7)
    strict = {row.name: row for row in compare(blueprint, evidence, PlanSettings(max_damage=0.5))}
    assert strict["paper rule"].damage == pytest.approx(0.7)  # measured, if not allowed
    assert "greedy rule" not in strict


def test_greedy_looks_ahead() -> None:
    """Attentions alone are cheaper a step, but taken first they'd leave none for the run."""
    table = choices_of(make_evidence(4, [run(1, 3, 2, 0.9)], kl=[0.1] * 4), 1)
    *singles, whole = table.rows
    found = greedy(table, Size(4, 1))
    assert found is not None
    assert found.choices == (singles[0], whole)
    assert greedy(table, Size(4, 2)) is None


@given(random_evidence(), widths, st.data())
def test_the_exact_programme_is_never_worse(evidence: Evidence, max_width: int | None, data: st.DataObject) -> None:
    blocks = len(evidence.parent.blocks)
    table = choices_of(evidence, 9, max_width)
    frontier = Frontier(table, Size(blocks, blocks))
    sizes = [Size(*map(int, at)) for at in np.argwhere(np.isfinite(frontier.damage))]
    size = data.draw(st.sampled_from(sizes))
    found = greedy(table, size)
    assert found is not None  # it looks ahead, so it finds a plan wherever there is one
    assert found.size == size
    ends = [-1, *(choice.last for choice in found.choices)]
    assert all(choice.first > end for choice, end in zip(found.choices, ends, strict=False))
    assert found.score >= frontier.damage[size] - 1e-9

    exact = frontier.selection(size)
    assume(size.fused > 0)
    blueprint = exact.blueprint(evidence.parent)
    rows = compare(blueprint, evidence, PlanSettings(max_damage=9, max_width=max_width))
    assert rows[0].damage == pytest.approx(exact.score, abs=1e-9)
    for row in rows:
        assert (len(row.dropped), sum(last - first for first, last in row.runs)) == size[:2]
        assert row.damage is None or row.damage >= exact.score - 1e-9
        width = 10 * max(last - first + 1 for first, last in row.runs)
        assert max_width is None or width <= max_width
