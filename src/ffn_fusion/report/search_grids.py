"""What a search found: children beside their parent and budgets, what they are made of, and others to compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite, isnan

from ffn_fusion.blueprint.ranges import format_runs
from ffn_fusion.report.formats import Measured, kl
from ffn_fusion.report.grid import Column, Grid, Row, kl_column, words
from ffn_fusion.search.budgets import RESOURCES
from ffn_fusion.search.problem import Found, Problem
from ffn_fusion.search.search import Outcome


def score_column(metric: str) -> Column:
    """KL with its unit, other metrics by their name."""
    return kl_column("score") if metric == "kl" else Column("score", kl, metric)


def score_of(found: Found) -> Measured | float:
    """The score, with its standard error where that is known."""
    return found.score if isnan(found.error) else Measured(found.score, found.error)


def child_grid(outcome: Outcome) -> Grid:
    """What the best child takes of every resource, against its parent and its budgets."""
    found, problem = outcome.found[0], outcome.problem
    score = score_column(problem.candidates.metric)
    return Grid.of(
        found.values,
        (words(""), lambda name: RESOURCES[name].words),
        (Column("child", str), lambda name: RESOURCES[name].show(found.values[name])),
        (Column("parent", str), lambda name: RESOURCES[name].show(parent_value(problem, name))),
        (Column("of it", "{:.2f}x".format), lambda name: _share(found.values[name], parent_value(problem, name))),
        (Column("budget", str, optional=True), lambda name: _budget(problem, name)),
        (replace(score, name="1 % more saves", optional=True), lambda name: _saved(outcome, name)),
        tone=lambda name: "marked" if name in problem.bounds else "",
        title=f"score {score.show(score_of(found))}, {_proof(found)}",
        notes=[
            _load_words(problem),
            "A budget relaxed by 1 % (or one step) was solved again." if outcome.prices else "",
            *(f"{note[0].upper()}{note[1:]}." for note in outcome.notes),
        ],
    )


def choices_grid(found: Found, metric: str) -> Grid:
    """Which choices a child is made of, and where; the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    scores: dict[tuple[str, str], float] = {}
    for row in found.chosen:
        name = (row.key.part, row.key.choice)
        groups.setdefault(name, []).append(row.key[:2])
        scores[name] = scores.get(name, 0.0) + row.score
    return Grid.of(
        sorted(groups, key=lambda name: (name[0], -len(groups[name]))),
        (words("part"), lambda name: name[0]),
        (words("choice"), lambda name: name[1]),
        (Column("times"), lambda name: len(groups[name])),
        (words("blocks"), lambda name: format_runs(_joined(groups[name]))),
        (score_column(metric), lambda name: scores[name]),
    )


def children_grid(
    problem: Problem, children: Iterable[tuple[str, Found | None]], heading: str, swept: str = ""
) -> Grid:
    """Several children side by side, or points of a sweep; None: no child is possible.

    Args:
        swept: the resource of a sweep, which is shown besides those that have a budget.
    """
    names = [name for name in problem.priced.known() if name in problem.bounds or name == swept]
    columns = [words(heading), Column("batch"), score_column(problem.candidates.metric)]
    columns += [Column(RESOURCES[name].words, str) for name in names]
    rows = []
    for label, found in children:
        values = [RESOURCES[name].show(found.values[name]) for name in names] if found else [None] * len(names)
        head = (found.load.batch, score_of(found)) if found else (None, None)
        rows.append(Row((label, *head, *values)))
    missing = ["–: no child is possible."] if any(row.values[1] is None for row in rows) else []  # noqa: RUF001
    return Grid(tuple(columns), tuple(rows), notes=tuple(missing))


def size_lines(problem: Problem) -> list[str]:
    """How large a programme is, and what the tables don't say."""
    of, programme = problem.candidates, problem.programme
    unknown = {need for resource in RESOURCES.values() for need in resource.needs} - of.known
    silent = sum(row.content is None and not row.kept for row in of.rows)
    return [
        f"{of.blocks} blocks with {len(of.cells)} sub-blocks, {len(of.rows):,} choices "
        f"({int(programme.allowed.sum()):,} may be taken)",
        f"{len(of.rows) + programme.words:,} variables, {len(of.cells) + len(programme.rows):,} constraints: "
        f"one for each sub-block; {', '.join(programme.names) or 'nothing else'}",
        f"missing costs: {', '.join(sorted(unknown)) or 'none'}",
        "no blueprint can be written: the tables don't say what the parent is"
        if of.parent is None
        else f"choices without `blocks`: {silent:,}",
    ]


def parent_value(problem: Problem, name: str) -> float:
    """What the parent takes of a resource, in its own unit."""
    return problem.value(name, problem.priced.parent[name])


def _share(value: float, parent: float) -> float | None:
    return value / parent if parent else None


def _budget(problem: Problem, name: str) -> str | None:
    if name not in problem.bounds:
        return None
    value = RESOURCES[name].show(problem.value(name, problem.bounds[name]))
    return f"{'>=' if RESOURCES[name].least else '<='} {value}"


def _saved(outcome: Outcome, name: str) -> float | None:
    price = outcome.prices.get(name)
    return price.saved if price else None


def _proof(found: Found) -> str:
    if found.solution.optimal:
        return "proven optimal"
    return f"not proven optimal in time: the best may be up to {found.solution.gap:.2%} lower"


def _load_words(problem: Problem) -> str:
    load = problem.load
    return f"Batch {load.batch}, {load.tokens_in:,} tokens in, {load.tokens_out:,} tokens out."


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Single blocks that follow one another as one run; runs of several blocks stay apart."""
    found: list[tuple[int, int]] = []
    alone = False
    for first, last in sorted(runs):
        if first == last and alone and found[-1][1] == first - 1:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
        alone = first == last
    return found


def outcome_values(outcome: Outcome) -> dict[str, object]:
    """Everything that a search found, as JSON."""
    problem = outcome.problem
    return {
        "metric": problem.candidates.metric,
        "parent": {name: _finite(parent_value(problem, name)) for name in problem.priced.known()},
        "budgets": {name: _finite(problem.value(name, bound)) for name, bound in problem.bounds.items()},
        "children": [found_values(found) for found in outcome.found],
        "batches": {str(batch): found.score if found else None for batch, found in outcome.batches.items()},
        "shadow_prices": {
            name: {"budget": _finite(price.budget), "relaxed": _finite(price.relaxed), "saved": price.saved}
            for name, price in outcome.prices.items()
        },
        "sweep": [{"budget": _finite(p.budget), "score": p.found.score if p.found else None} for p in outcome.points],
        "notes": list(outcome.notes),
    }


def found_values(found: Found) -> Mapping[str, object]:
    """One child as JSON."""
    return {
        "score": found.score,
        "standard_error": _finite(found.error),
        "proven_optimal": found.solution.optimal,
        "gap": _finite(found.solution.gap),
        "seconds": found.solution.seconds,
        "load": vars(found.load),
        "values": {name: _finite(value) for name, value in found.values.items()},
        "choices": [row.key._asdict() for row in found.chosen],
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if isfinite(value) else None
