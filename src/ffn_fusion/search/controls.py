"""Simpler ways to choose within the same budgets, to show what the programme is worth. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np

from ffn_fusion.search.candidates import Cell
from ffn_fusion.search.priced import Floats
from ffn_fusion.search.problem import Found, Problem
from ffn_fusion.search.programme import Solution


def greedy(problem: Problem) -> Found | None:
    """From the parent on, again and again the swap with the least score for what it takes off the excess over budgets.

    A swap puts one candidate in; those that it overlaps go, and what they covered besides stays as the parent has it.
    Only budgets are looked at. None where no swap helps before all budgets are kept.
    """
    rows, programme = problem.candidates.rows, problem.programme
    kept = {cell: c for c, row in enumerate(rows) if row.kept for cell in row.cells}
    taken = dict(kept)
    takes, bounds = _scaled(problem)
    scores = programme.scores
    while True:
        chosen = sorted(set(taken.values()))
        over = np.maximum(takes[:, chosen].sum(axis=1) - bounds, 0)
        if not over.any():
            return _kept_to(problem, chosen)
        best: tuple[float, dict[Cell, int]] | None = None
        for c, row in enumerate(rows):
            if not programme.allowed[c] or taken[row.cells[0]] == c:
                continue
            gone = {taken[cell] for cell in row.cells}
            back = {cell: kept[cell] for g in gone for cell in rows[g].cells if cell not in row.cells}
            if any(cell not in back for k in back.values() for cell in rows[k].cells):
                continue  # a block that is kept as a whole can't come back in part
            new = [c, *dict.fromkeys(back.values())]
            change = takes[:, new].sum(axis=1) - takes[:, list(gone)].sum(axis=1)
            helps = float((over - np.maximum(over + change, 0)).sum())
            if helps <= 0:
                continue
            price = (float(scores[new].sum()) - float(scores[list(gone)].sum())) / helps
            if best is None or price < best[0]:
                best = price, {**back, **dict.fromkeys(row.cells, c)}
        if best is None:
            return None
        taken |= best[1]


def best_per_block(problem: Problem) -> Found | None:
    """For every cell alone the candidate of least score within an equal share of the budgets.

    That is the share of the kept candidate's costs which the budgets leave of the parent's. None where a cell has none.
    """
    rows, programme = problem.candidates.rows, problem.programme
    takes, bounds = _scaled(problem)
    kept = [c for c, row in enumerate(rows) if row.kept]
    share = bounds / np.where((total := takes[:, kept].sum(axis=1)) > 0, total, 1)
    chosen = []
    for k in kept:
        same = [c for c, row in enumerate(rows) if row.cells == rows[k].cells and programme.allowed[c]]
        fits = [c for c in same if (takes[:, c] <= share * takes[:, k] + 1e-12).all()]
        if not fits:
            return None
        chosen.append(min(fits, key=lambda c: programme.scores[c]))
    return _kept_to(problem, chosen)


def random_child(problem: Problem, seed: int) -> Found | None:
    """A child within all budgets and rules whose candidates are chosen without a look at their scores.

    The programme is solved for random scores, the same for one seed.
    """
    scores = np.random.default_rng(seed).uniform(size=len(problem.candidates.rows))
    cells = np.array([len(row.cells) for row in problem.candidates.rows])
    solution = problem.programme.solve(scores * cells)
    return problem.found(replace(solution, gap=inf)) if solution else None


def _kept_to(problem: Problem, chosen: Sequence[int]) -> Found | None:
    """These candidates, if they keep to everything."""
    programme = problem.programme
    count = len(programme.scores)
    taken = np.zeros(count + programme.words, dtype=np.bool_)
    taken[list(chosen)] = True
    for row in programme.rows:
        if row.columns.max(initial=0) >= count and row.coefficients[-1] < 0:  # a variable that these switch on
            taken[row.columns[-1]] |= taken[row.columns[:-1]].any()
    if not all(programme.allowed[c] for c in chosen) or not all(row.holds(taken) for row in programme.rows):
        return None
    return problem.found(Solution(tuple(sorted(chosen)), inf, 0.0))


def _scaled(problem: Problem) -> tuple[Floats, Floats]:
    """What candidates take of each budgeted resource [R, candidates], and its bounds [R], as shares of the parent's."""
    names = list(problem.bounds)
    parents = [problem.priced.parent[name] or 1.0 for name in names]
    takes = np.array([problem.priced.takes[n] / p for n, p in zip(names, parents, strict=True)])
    bounds = np.array([(problem.bounds[n] - problem.priced.rest[n]) / p for n, p in zip(names, parents, strict=True)])
    return takes.reshape(len(names), len(problem.candidates.rows)), bounds
