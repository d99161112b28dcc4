from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from brute_force import candidates, every_child, keeps_to, score_of, settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_tables import cost_rows, score_rows
from scipy import optimize
from scipy.optimize import OptimizeResult, milp

from ffn_fusion.errors import BlueprintError, UsageError
from ffn_fusion.report.search_grids import child_grid
from ffn_fusion.search.budgets import RESOURCES, parse_amount
from ffn_fusion.search.candidates import Candidates, join
from ffn_fusion.search.controls import best_per_block, greedy, random_child
from ffn_fusion.search.problem import Problem
from ffn_fusion.search.programme import NoTimeError
from ffn_fusion.search.search import problems_of, search
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.units import parse_seconds

_SOLVER_GAP = 1e-8
"""Absolute gap of the solver, 1e-6, in units of which the largest score is 1,000; scores are below 4."""


def asked_problems(of: Candidates, asked: SearchSettings) -> list[Problem] | None:
    """None: what was asked is refused before anything is solved."""
    try:
        return problems_of(of, asked)
    except (UsageError, BlueprintError):
        return None


def best_of_all(problems: list[Problem], asked: SearchSettings, unlike: list[tuple[int, ...]]) -> float | None:
    of = problems[0].candidates
    cells = len(of.cells)

    def shares(child: tuple[int, ...], other: tuple[int, ...]) -> float:
        return sum(len(of.rows[c].cells) for c in set(child) & set(other)) / cells

    children = [
        child
        for child in every_child(of)
        if all(shares(child, other) <= asked.alpha + 1e-9 for other in unlike)
        and any(keeps_to(problem, asked, child) for problem in problems)
    ]
    return min((score_of(of, child) for child in children), default=None)


@pytest.mark.slow
@hypothesis_settings(max_examples=1000)
@given(st.data())
def test_the_programme_finds_the_best_of_every_child_a_thousand_times(data: st.DataObject) -> None:
    check_against_every_child(data)


@hypothesis_settings(max_examples=100)
@given(st.data())
def test_the_programme_finds_the_best_of_every_child(data: st.DataObject) -> None:
    check_against_every_child(data)


def check_against_every_child(data: st.DataObject) -> None:
    of = data.draw(candidates())
    asked = data.draw(settings(of))
    solutions = data.draw(st.sampled_from([1, 1, 3]))
    asked = asked.replaced(solutions=solutions, alpha=data.draw(st.sampled_from([0.3, 0.5, 0.75])))
    problems = asked_problems(of, asked)
    if problems is None:
        return
    best = best_of_all(problems, asked, [])
    if best is None:
        with pytest.raises(BlueprintError, match=r"no child keeps to|can't cover") as error:
            search(of, asked)
        assert error.value.hint
        return
    outcome = search(of, asked)
    earlier: list[tuple[int, ...]] = []
    for found in outcome.found:
        expected = best_of_all(problems, asked, earlier)
        assert expected is not None
        assert found.score == pytest.approx(expected, abs=_SOLVER_GAP)
        problem = next(p for p in problems if p.load == found.load)
        assert keeps_to(problem, asked, found.solution.chosen)
        assert found.solution.optimal
        earlier.append(found.solution.chosen)
    if len(earlier) < solutions:
        assert best_of_all(problems, asked, earlier) is None
    for name, price in outcome.prices.items():
        more = best_of_all([outcome.problem.within(name, _bound(outcome.problem, name, price.relaxed))], asked, [])
        assert more is not None
        assert price.saved == pytest.approx(outcome.found[0].score - more, abs=2 * _SOLVER_GAP)


def _bound(problem: Problem, name: str, value: float) -> float:
    return RESOURCES[name].bound(value, problem.load)


@hypothesis_settings(max_examples=50)
@given(st.data())
def test_an_impossible_budget_is_named_with_the_least_that_is_possible(data: st.DataObject) -> None:
    of = data.draw(candidates(3))
    asked = data.draw(settings(of)).replaced(at_least=(), pin=(), uniform=(), batch=(1,))
    (problem,) = asked_problems(of, asked) or (None,)
    if problem is None or best_of_all([problem], asked, []) is not None:
        return
    with pytest.raises(BlueprintError) as error:
        search(of, asked)
    for child in every_child(of):  # without the conflict, or with any one of it relaxed, there is a child
        assert not keeps_to(problem, asked, child)
    assert "\n" not in error.value.message
    # Whatever the hint says is possible is so: relaxed to it, that budget is in no conflict with the others named.
    for said in filter(None, error.value.hint.partition(": ")[2].split(", or ")):
        words, _, value = said.partition(" >= " if ">=" in said else " <= ")
        name = next(name for name, resource in RESOURCES.items() if resource.words == words)
        bound = problem.priced.bound(name, parse_amount(name, value))
        named = {n for n in problem.bounds if RESOURCES[n].words in error.value.message}
        rules = {n for n in problem.programme.names if n not in problem.bounds and n in error.value.message}
        relaxed = problem.within(name, bound)
        others = set(relaxed.programme.names) - named - rules
        assert relaxed.programme.without(others).solve() is not None


@given(st.data())
def test_order_and_units_change_nothing(data: st.DataObject) -> None:
    of = data.draw(candidates())
    asked = data.draw(settings(of))
    if asked_problems(of, asked) is None:
        return
    try:
        score = search(of, asked).found[0].score
    except BlueprintError:
        return
    order = data.draw(st.permutations(range(len(of.rows))))
    assert search(replace(of, rows=tuple(of.rows[i] for i in order)), asked).found[0].score == pytest.approx(
        score, abs=_SOLVER_GAP
    )
    larger = replace(
        of,
        rows=tuple(
            replace(
                row,
                score=1024 * row.score,
                costs=replace(row.costs, parameters=4096 * row.costs.parameters),
                seconds={at: type(s)(s.prefill / 1024, s.decode / 1024) for at, s in row.seconds.items()},
            )
            for row in of.rows
        ),
        rest=replace(of.rest, parameters=4096 * of.rest.parameters),
        rest_seconds={at: type(s)(s.prefill / 1024, s.decode / 1024) for at, s in of.rest_seconds.items()},
    )
    assert search(larger, asked).found[0].score == pytest.approx(1024 * score, abs=1024 * _SOLVER_GAP)


@hypothesis_settings(max_examples=50)
@given(st.data())
def test_controls_keep_to_everything_and_never_win(data: st.DataObject) -> None:
    of = data.draw(candidates())
    asked = data.draw(settings(of)).replaced(batch=(1,))
    (problem,) = asked_problems(of, asked) or (None,)
    if problem is None:
        return
    best = best_of_all([problem], asked, [])
    for control in (greedy(problem), best_per_block(problem), random_child(problem, 0), random_child(problem, 1)):
        if control:
            assert best is not None
            assert control.score >= best - _SOLVER_GAP
            chosen = control.solution.chosen
            assert sorted(cell for c in chosen for cell in of.rows[c].cells) == list(of.cells)
            assert keeps_to(problem, asked, chosen)
    if best is not None:
        again, other = random_child(problem, 3), random_child(problem, 3)
        assert again
        assert other
        assert again.solution.chosen == other.solution.chosen


def test_what_is_not_proven_in_time_says_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    of = join(score_rows(6), cost_rows(6))
    asked = SearchSettings.model_validate({"max_latency": "0.6x", "time_limit": 7})

    def stopped(*words: Any, **options: Any) -> OptimizeResult:
        assert 0 < options["options"]["time_limit"] <= 7
        found = milp(*words, **options)
        return OptimizeResult({**found, "status": 1, "mip_gap": 0.02})

    monkeypatch.setattr(optimize, "milp", stopped)
    outcome = search(of, asked)
    assert not outcome.found[0].solution.optimal
    assert outcome.found[0].solution.gap == 0.02
    assert outcome.prices == {}
    assert "the best may be up to 2.00% lower" in child_grid(outcome).title
    monkeypatch.setattr(optimize, "milp", lambda *words, **options: OptimizeResult(x=None, status=1))
    with pytest.raises(NoTimeError, match="no child was found within 7 s"):
        search(of, asked)


@given(st.data())
def test_settings_survive_a_file(data: st.DataObject) -> None:
    asked = data.draw(settings(data.draw(candidates())))
    assert SearchSettings.model_validate(asked.model_dump(mode="json")) == asked


@given(
    st.sampled_from(["memory", "latency", "throughput", "cost", "steps", "parameters", "kv"]),
    st.floats(1e-6, 1e13),
    st.sampled_from([True, False, None]),
)
def test_values_are_shown_as_they_are_read(name: str, value: float, up: bool | None) -> None:
    value = max(value, 1.0) if name in ("memory", "kv", "parameters") else value
    resource = RESOURCES[name]
    read = resource.parse(resource.show(value, up))
    assert read == pytest.approx(value, rel=1e-3, abs=1 if name in ("memory", "kv", "parameters") else 0)
    if up is not None and name not in ("memory", "kv", "parameters"):  # those are whole numbers
        assert read >= value * (1 - 1e-9) if up else read <= value * (1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("20 ms", 0.02),
        ("1.5s", 1.5),
        ("300us", 3e-4),
        ("0.25", 0.25),
        ("1e-3", 1e-3),
        ("ms", None),
        ("-1s", None),
        ("0", None),
    ],
)
def test_times(text: str, said: float | None) -> None:
    if said is None:
        with pytest.raises(UsageError, match="isn't a time"):
            parse_seconds(text)
    else:
        assert parse_seconds(text) == pytest.approx(said)
