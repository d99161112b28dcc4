"""The search: the best child within all budgets, those unlike it, a sweep of budgets, and what each budget is worth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ffn_fusion.errors import BlueprintError
from ffn_fusion.search.budgets import RESOURCES, Amount
from ffn_fusion.search.candidates import Candidates
from ffn_fusion.search.problem import Found, Problem, batches_of, make_problem, points_of
from ffn_fusion.search.programme import NoTimeError, conflict, covers_every_cell, least_total, unlike_row
from ffn_fusion.search.settings import SearchSettings

RELAXED = 0.01
"""Share by which a budget is relaxed to see what it is worth."""


@dataclass(frozen=True)
class ShadowPrice:
    """What a little more of a budget would buy, by solving again: no linear estimate, and 0 where it buys nothing.

    Args:
        budget: in the resource's own unit; relaxed: the same, 1 % more generous (a step at least).
        saved: how much lower the score would be.
    """

    budget: float
    relaxed: float
    saved: float


@dataclass(frozen=True)
class Point:
    """One budget of a sweep, and the best child within it; None: there is none."""

    budget: float
    amount: Amount
    found: Found | None


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Args:
        found: the best child, then those unlike it; of a sweep, those of all points.
        problem: the one that the first of them solves.
        batches: the best child at each batch size; None: there is none.
        prices: by the word of each budget; none where the child, or that of the relaxed budget, isn't proven in time.
        points: of a sweep. notes: what had to be assumed, and what wasn't found.
    """

    found: tuple[Found, ...]
    problem: Problem
    batches: Mapping[int, Found | None] = field(default_factory=dict)
    prices: Mapping[str, ShadowPrice] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()


def search(candidates: Candidates, settings: SearchSettings, allowed: Collection[int] | None = None) -> Outcome:
    """Choose one candidate for every cell.

    Args:
        allowed: places of the candidates that may be taken; None: all of them.

    Raises:
        BlueprintError: no child keeps to the budgets; the line names those in conflict, the hint the least possible.
        UsageError, DataError: as ``make_problem``. MissingExtraError: SciPy isn't installed.
    """
    problems = problems_of(candidates, settings, allowed)
    if settings.sweep:
        return _swept(problems, settings)
    best, batches = _best(problems)
    if best is None:
        raise impossible(problems[0])
    first = problems[list(batches).index(best.load.batch)]
    found, notes = [best], list(first.priced.notes)
    while len(found) < settings.solutions:
        rows = [unlike_row(candidates, earlier.solution, settings.alpha) for earlier in found]
        try:
            another, _ = _best([problem.with_rows(*rows) for problem in problems])
        except NoTimeError as error:
            notes.append(error.message)
            break
        if another is None:
            notes.append(f"no further child shares at most {settings.alpha:.0%} with each of these {len(found)}")
            break
        found.append(another)
    return Outcome(tuple(found), first, batches, _prices(first, best), notes=tuple(notes))


def problems_of(
    candidates: Candidates, settings: SearchSettings, allowed: Collection[int] | None = None
) -> list[Problem]:
    """One problem for each batch size. Raises: as :func:`search`."""
    problems = [make_problem(candidates, settings, batch, allowed) for batch in batches_of(candidates, settings)]
    covers_every_cell(problems[0].programme)
    return problems


def impossible(problem: Problem) -> BlueprintError:
    """The error for a problem that no child solves: what is in conflict, and the least that each budget could be."""
    names = conflict(problem.programme)
    if not names:
        return BlueprintError(
            "the choices that are left can't cover every block once", "pin less, or name fewer engines"
        )
    said = [_said(problem, name, problem.bounds[name]) if name in problem.bounds else name for name in names]
    leasts = []
    for name in names:
        if name in problem.bounds:
            rest = problem.programme.without({name})
            total = least_total(rest, problem.priced.takes[name])
            if total is None:  # the other budgets can't be kept together either; only those of this conflict then
                rest = rest.without(set(rest.names) - set(names))
                total = least_total(rest, problem.priced.takes[name])
            assert total is not None
            leasts.append(_said(problem, name, total + problem.priced.rest[name], possible=True))
    others = " with the others as they are" if len(names) > 1 else ""
    hint = f"possible{others}: {', or '.join(leasts)}" if leasts else "relax one of them"
    return BlueprintError(f"no child keeps to {' and '.join(said)} (batch {problem.load.batch})", hint)


def _said(problem: Problem, name: str, bound: float, possible: bool = False) -> str:
    resource = RESOURCES[name]
    shown = resource.show(problem.value(name, bound), up=not resource.least if possible else None)
    return f"{resource.words} {'>=' if resource.least else '<='} {shown}"


def _best(problems: Sequence[Problem]) -> tuple[Found | None, dict[int, Found | None]]:
    """The child of least score over batch sizes, of equal ones that of most tokens a second; and all of them."""
    batches = {problem.load.batch: problem.solve() for problem in problems}
    there = [found for found in batches.values() if found]
    best = min(there, key=lambda found: (found.score, -found.values.get("throughput", 0.0)), default=None)
    return best, batches


def _swept(problems: Sequence[Problem], settings: SearchSettings) -> Outcome:
    assert settings.sweep
    name, points = settings.sweep.name, []
    for at_batches in zip(*(points_of(problem, settings) for problem in problems), strict=True):
        best, _ = _best([problem for _, problem in at_batches])
        amount, first = at_batches[0]
        points.append(Point(first.value(name, first.bounds[name]), amount, best))
    found = tuple(point.found for point in points if point.found)
    if not found:
        every = [problem for _, problem in points_of(problems[0], settings)]
        raise impossible(max(every, key=lambda problem: problem.bounds[name]))
    return Outcome(found, problems[0], points=tuple(points), notes=problems[0].priced.notes)


def _prices(problem: Problem, found: Found) -> dict[str, ShadowPrice]:
    """Solve again with each budget relaxed a little."""
    prices: dict[str, ShadowPrice] = {}
    if not found.solution.optimal:
        return prices
    for name, bound in problem.bounds.items():
        more = bound + max(RELAXED * abs(bound), 1.0 if name == "steps" else 0.0)
        try:
            relaxed = problem.within(name, more).solve()
        except NoTimeError:
            continue
        assert relaxed
        saved = max(found.score - relaxed.score, 0.0)
        prices[name] = ShadowPrice(problem.value(name, bound), problem.value(name, more), saved)
    return prices
