"""The mixed-integer programme (Puzzle, arXiv 2411.19146, section 4), solved by HiGHS through SciPy. No torch.

One binary variable x_c for each candidate c, and for each uniform part one for each word of a choice:

    minimise    sum_c score_c x_c
    such that   sum of x_c over the candidates that cover a cell = 1        for every cell of the parent
                sum_c takes_rc x_c <= bound_r                               for every budget r
                low <= sum of x_c over the candidates of a word <= high     for every count
                sum_c cells_c y_c x_c <= alpha cells                        for every earlier child y
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.blueprint import Part
from ffn_fusion.errors import BlueprintError
from ffn_fusion.search.candidates import Candidates
from ffn_fusion.search.highs import BinaryProgramme, scipy
from ffn_fusion.search.priced import Floats

_EXACT = 1e-9
"""A sum may be above its budget by this share: what rounding adds up to."""
_TRIES = 50
_SCALE = 1000.0
"""The largest score in the solver's units, whose own absolute gap is 1e-6."""


@dataclass(frozen=True)
class Row:
    """A constraint: low <= sum of coefficients * x <= high. Those of one ``name`` belong together."""

    name: str
    columns: npt.NDArray[np.int64]
    coefficients: Floats
    low: float
    high: float

    @property
    def scale(self) -> float:
        """What it's divided by, since the solver's tolerance is absolute."""
        bound = max((abs(end) for end in (self.low, self.high) if np.isfinite(end)), default=0.0)
        return bound or float(np.abs(self.coefficients).max(initial=0.0)) or 1.0

    def holds(self, chosen: npt.NDArray[np.bool_]) -> bool:
        """Whether the exact sum is within the constraint."""
        total = fsum(self.coefficients[chosen[self.columns]])
        slack = _EXACT * self.scale
        return self.low - slack <= total <= self.high + slack


@dataclass(frozen=True)
class Solution:
    """A choice of candidates.

    Args:
        chosen: their places, ascending.
        gap: how far its score may be from the best, as a share of it; 0 where it's proven optimal.
    """

    chosen: tuple[int, ...]
    gap: float
    seconds: float

    @property
    def optimal(self) -> bool:
        return self.gap == 0


class NoTimeError(BlueprintError):
    """No child was found in time, and none was ruled out."""


@dataclass(frozen=True)
class Programme:
    """Candidates with the rows that a child must keep to besides covering every cell.

    Args:
        allowed: the candidates that may be taken at all.
        words: variables after those of the candidates, one for each word of each uniform part.
        time_limit: seconds for one solution.
    """

    candidates: Candidates
    allowed: npt.NDArray[np.bool_]
    rows: tuple[Row, ...] = ()
    words: int = 0
    time_limit: float = 60.0

    @cached_property
    def scores(self) -> Floats:
        return np.array([row.score for row in self.candidates.rows])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the rows, each once."""
        return tuple(dict.fromkeys(row.name for row in self.rows))

    @cached_property
    def cover(self) -> tuple[Row, ...]:
        """One row for every cell of the parent."""
        places: dict[Any, list[int]] = {cell: [] for cell in self.candidates.cells}
        for c, row in enumerate(self.candidates.rows):
            for cell in row.cells:
                places[cell].append(c)
        return tuple(Row("cover", np.array(found), np.ones(len(found)), 1, 1) for found in places.values())

    def with_rows(self, *rows: Row) -> Programme:
        return replace(self, rows=(*self.rows, *rows))

    def without(self, names: Collection[str]) -> Programme:
        """The programme without the rows of these names."""
        return replace(self, rows=tuple(row for row in self.rows if row.name not in names))

    def solve(self, objective: Floats | None = None) -> Solution | None:
        """The candidates of least summed ``objective`` (default: score); None where none keep to all rows.

        The solver's tolerance lets a budget be exceeded by a millionth. What does so is ruled out and the rest solved
        again, so that the result keeps to every budget exactly.

        Raises:
            NoTimeError: none was found within the time limit. MissingExtraError: SciPy isn't installed.
        """
        start, programme = time.monotonic(), self
        for _ in range(_TRIES):
            left = max(self.time_limit - (time.monotonic() - start), 0.01)
            chosen, gap = programme._solve_once(self.scores if objective is None else objective, left)
            if chosen is None:
                return None
            if all(row.holds(chosen) for row in self.rows):
                places = np.flatnonzero(chosen[: len(self.scores)])
                return Solution(tuple(places.tolist()), gap, time.monotonic() - start)
            taken = np.flatnonzero(chosen[: len(self.scores)])
            programme = programme.with_rows(Row("exact", taken, np.ones(len(taken)), -np.inf, len(taken) - 1))
        raise NoTimeError(f"{_TRIES} children just above a budget were ruled out", "change that budget a little")

    def _solve_once(self, objective: Floats, seconds: float) -> tuple[npt.NDArray[np.bool_] | None, float]:
        _, sparse = scipy()
        count, rows = len(self.scores), (*self.cover, *self.rows)
        matrix = sparse.csr_array(
            (
                np.concatenate([row.coefficients / row.scale for row in rows]),
                np.concatenate([row.columns for row in rows]),
                np.cumsum([0, *(len(row.columns) for row in rows)]),
            ),
            shape=(len(rows), count + self.words),
        )
        found = BinaryProgramme(
            costs=np.concatenate([objective * (_SCALE / (np.abs(objective).max() or 1.0)), np.zeros(self.words)]),
            upper=np.concatenate([self.allowed, np.ones(self.words)]),
            matrix=matrix,
            low=np.array([row.low / row.scale for row in rows]),
            high=np.array([row.high / row.scale for row in rows]),
        ).solve(seconds)
        if found is None:
            raise NoTimeError(
                f"no child was found within {self.time_limit:g} s", "raise --time-limit, or relax a budget"
            )
        return found


def covers_every_cell(programme: Programme) -> None:
    """Raises: BlueprintError: no candidate that is allowed covers some cell."""
    for cell, row in zip(programme.candidates.cells, programme.cover, strict=True):
        if not programme.allowed[row.columns].any():
            raise BlueprintError(
                f"nothing is left for the {cell[1]} of block {cell[0]}", "pin less, or name fewer engines"
            )


def least_total(programme: Programme, takes: Floats) -> float | None:
    """The least sum of ``takes`` that any child has within the rows; None where no child keeps to them."""
    found = programme.solve(takes)
    return None if found is None else fsum(takes[list(found.chosen)])


def conflict(programme: Programme) -> tuple[str, ...]:
    """Names of rows that can't be kept together, none of which can be spared for that (an irreducible set).

    Each is left out in turn; what stays impossible without it doesn't need it.
    """
    assert programme.solve(np.zeros(len(programme.scores))) is None
    for name in programme.names:
        fewer = programme.without({name})
        if fewer.solve(np.zeros(len(programme.scores))) is None:
            programme = fewer
    return programme.names


# ---- rows


def budget_row(name: str, takes: Floats, bound: float) -> Row:
    """sum takes * x <= bound."""
    return Row(name, np.arange(len(takes)), takes, -np.inf, bound)


def count_row(name: str, places: Sequence[int], low: float, high: float) -> Row:
    """low <= how many of these candidates are taken <= high."""
    return Row(name, np.array(places, dtype=np.int64), np.ones(len(places)), low, high)


def unlike_row(candidates: Candidates, earlier: Solution, alpha: float) -> Row:
    """A child has at most the share ``alpha`` of its sub-blocks in common with an earlier one."""
    places = np.array(earlier.chosen)
    shared = np.array([float(len(candidates.rows[c].cells)) for c in places])
    return Row("unlike", places, shared, -np.inf, alpha * len(candidates.cells))


def uniform_rows(candidates: Candidates, part: Part, first: int) -> tuple[list[Row], int]:
    """All cells of a part are covered by candidates of one word.

    Args:
        first: place of the first variable that isn't used yet.

    Returns:
        The rows, and how many variables they need.
    """
    name = f"uniform {part}"
    words: dict[str, int] = {}
    by_cell: dict[tuple[int, str], list[int]] = {}
    for c, row in enumerate(candidates.rows):
        for block, of in row.cells:
            if of == part:
                words.setdefault(row.key.choice, first + len(words))
                by_cell.setdefault((block, row.key.choice), []).append(c)
    blocks = [block for block, of in candidates.cells if of == part]
    rows = []
    for block in blocks:
        for word, variable in words.items():
            places = by_cell.get((block, word), [])
            rows.append(Row(name, np.array([*places, variable]), np.array([*(1.0 for _ in places), -1.0]), 0, 0))
    return rows, len(words)


def exclusive_rows(name: str, one: Sequence[int], other: Sequence[int], switch: int) -> list[Row]:
    """Candidates of only one of two kinds may be taken. Args: switch: place of a variable of its own."""
    many = float(max(len(one), len(other)))
    return [
        Row(name, np.array([*one, switch]), np.array([*(1.0 for _ in one), -many]), -np.inf, 0),
        Row(name, np.array([*other, switch]), np.array([*(1.0 for _ in other), many]), -np.inf, many),
    ]
