"""A search at one load: the programme with the budgets and rules that a person gave, and children that keep to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum, inf

import numpy as np
import numpy.typing as npt

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.errors import UsageError
from ffn_fusion.search.budgets import RESOURCES, Amount, Load
from ffn_fusion.search.candidates import Candidate, Candidates
from ffn_fusion.search.priced import Priced
from ffn_fusion.search.programme import (
    Programme,
    Row,
    Solution,
    budget_row,
    count_row,
    exclusive_rows,
    uniform_rows,
)
from ffn_fusion.search.settings import SearchSettings, Word

_APART = ("linear", "wide")
"""Kinds that no form of a child holds together."""


@dataclass(frozen=True)
class Found:
    """A child that keeps to all budgets.

    Args:
        solution: places of its candidates, and whether it's proven optimal.
        values: what it takes of each known resource, in the resource's own unit.
    """

    solution: Solution
    chosen: tuple[Candidate, ...]
    load: Load
    values: Mapping[str, float]

    @property
    def score(self) -> float:
        return fsum(row.score for row in self.chosen)

    @property
    def error(self) -> float:
        """Standard error of the score, as of independent ones; NaN where one isn't known."""
        return float(np.sqrt(fsum(row.error**2 for row in self.chosen)))


@dataclass(frozen=True)
class Problem:
    """Candidates, their costs under one load, and the programme of all budgets and rules.

    Args:
        bounds: the largest sum of each budgeted resource, what is outside of blocks included.
    """

    priced: Priced
    programme: Programme
    bounds: Mapping[str, float]

    @property
    def candidates(self) -> Candidates:
        return self.priced.candidates

    @property
    def load(self) -> Load:
        return self.priced.load

    def within(self, name: str, bound: float) -> Problem:
        """The same problem with another bound for one resource."""
        row = budget_row(name, self.priced.takes[name], bound - self.priced.rest[name])
        programme = self.programme.without({name}).with_rows(row)
        return replace(self, programme=programme, bounds={**self.bounds, name: bound})

    def with_rows(self, *rows: Row) -> Problem:
        return replace(self, programme=self.programme.with_rows(*rows))

    def solve(self) -> Found | None:
        """The child of least summed score; None where none keeps to everything.

        Raises:
            NoTimeError: none was found in time. MissingExtraError: SciPy isn't installed.
        """
        solution = self.programme.solve()
        return self.found(solution) if solution else None

    def found(self, solution: Solution) -> Found:
        """These candidates as a child."""
        totals = {name: self.total(name, solution.chosen) for name in self.priced.known()}
        values = {name: RESOURCES[name].value(total, self.load) for name, total in totals.items()}
        return Found(solution, tuple(self.candidates.rows[c] for c in solution.chosen), self.load, values)

    def total(self, name: str, chosen: Sequence[int]) -> float:
        """The sum of a resource over candidates and the rest of the model."""
        return self.priced.rest[name] + fsum(self.priced.takes[name][list(chosen)])

    def value(self, name: str, bound: float) -> float:
        """A sum in the resource's own unit."""
        return RESOURCES[name].value(bound, self.load)


def make_problem(
    candidates: Candidates, settings: SearchSettings, batch: int, allowed: Collection[int] | None = None
) -> Problem:
    """Put together the programme at one batch size.

    Args:
        allowed: places of the candidates that may be taken; None: all of them.

    Raises:
        UsageError: a budget that the tables say too little about, or a choice that they don't have.
        DataError: nothing was timed at this load.
    """
    timed = candidates.scenarios
    least = min((at.context for at in timed if at.batch == batch), default=128)
    priced = Priced(candidates, Load(batch, settings.tokens_in or least, settings.tokens_out, settings.price))
    bounds = {name: priced.bound(name, amount) for name, amount in settings.budgets.items()}
    rows = [budget_row(name, priced.takes[name], bound - priced.rest[name]) for name, bound in bounds.items()]
    for count in settings.at_most:
        places = _places(candidates, count.word)
        rows.append(count_row(f"at most {count.number} times {count.word}", places, -inf, count.number))
    for count in settings.at_least:
        places = _places(candidates, count.word)
        rows.append(count_row(f"at least {count.number} times {count.word}", places, count.number, inf))
    words = 0
    for part in dict.fromkeys(settings.uniform):
        found, needed = uniform_rows(candidates, part, len(candidates.rows) + words)
        rows += found
        words += needed
    linear, wide = (
        [c for c, row in enumerate(candidates.rows) if any(k.kind == of for k in row.kinds)] for of in _APART
    )
    if linear and wide:
        rows += exclusive_rows(
            "linear layers or blocks side by side, not both", linear, wide, len(candidates.rows) + words
        )
        words += 1
    may = np.ones(len(candidates.rows), dtype=np.bool_)
    if allowed is not None:
        may[:] = False
        may[list(allowed)] = True
    may &= _pinned(candidates, settings)
    return Problem(priced, Programme(candidates, may, tuple(rows), words, settings.time_limit), bounds)


def batches_of(candidates: Candidates, settings: SearchSettings) -> tuple[int, ...]:
    """The batch sizes to solve for."""
    return tuple(dict.fromkeys(settings.batch)) or (min((at.batch for at in candidates.scenarios), default=1),)


def points_of(problem: Problem, settings: SearchSettings) -> list[tuple[Amount, Problem]]:
    """The problems of a sweep, one for each budget."""
    sweep = settings.sweep
    assert sweep
    values = np.linspace(sweep.low.value, sweep.high.value, sweep.points)
    amounts = [Amount(float(f"{value:.12g}"), sweep.low.relative) for value in values]
    return [(amount, problem.within(sweep.name, problem.priced.bound(sweep.name, amount))) for amount in amounts]


def _is(row: Candidate, word: Word) -> bool:
    return row.key.choice == word.choice and word.part in ("", row.key.part)


def _places(candidates: Candidates, word: Word) -> list[int]:
    found = [c for c, row in enumerate(candidates.rows) if _is(row, word)]
    if not found:
        raise UsageError(f"no choice is called {str(word)!r}", f"the tables have {_words(candidates.rows)}")
    return found


def _pinned(candidates: Candidates, settings: SearchSettings) -> npt.NDArray[np.bool_]:
    """Candidates that no pin rules out: those of other words that cover a cell of a pinned block."""
    may = np.ones(len(candidates.rows), dtype=np.bool_)
    for pin in settings.pin:
        for block in pin.blocks:
            there = [c for c, row in enumerate(candidates.rows) if any(cell[0] == block for cell in row.cells)]
            taking = [c for c in there if _is(candidates.rows[c], pin.word)]
            if not taking:
                words = _words(candidates.rows[c] for c in there)
                raise UsageError(
                    f"--pin {pin}: block {block} has no choice {str(pin.word)!r}",
                    f"it has {words}" if there else f"blocks are {format_blocks(range(candidates.blocks))}",
                )
            cells = {cell for c in taking for cell in candidates.rows[c].cells if cell[0] == block}
            for c in there:
                if c not in taking and cells & set(candidates.rows[c].cells):
                    may[c] = False
    return may


def _words(rows: Iterable[Candidate]) -> str:
    return ", ".join(dict.fromkeys(row.key.choice for row in rows))
