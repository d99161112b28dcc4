"""Choosing the ridge lambda: the one of the least error on held-out tokens, and none unless it beats the old weights.

The primal and the dual form follow the same path: from the largest lambda to the smallest, until the held-out error
rises. What comes after that overfits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from torch import Tensor

Reason = Literal[
    "no channels",
    "no tokens",
    "no held-out tokens",
    "not finite",
    "singular",
    "no gain on held-out tokens",
]
SolutionT = TypeVar("SolutionT")


@dataclass(frozen=True)
class PathPoint:
    """The result for one lambda.

    Attributes:
        ridge: lambda.
        fit_error: weighted sum of squares on the fitted tokens, relative to that of W0; None: not solved.
        held_out_error: the same on the held-out tokens.
        residual: of the linear solve, |C - A dW^T| / |C|.
    """

    ridge: float
    fit_error: float | None = None
    held_out_error: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class Fit:
    """The change of a matrix that a regression found, if it found any.

    Attributes:
        ridge: the lambda of the least held-out error; None: W0 stays, and ``reason`` says why.
        change_DF: dW [D, F]; None where W0 stays, and in a dual fit, which has ``dual_ND``.
        dual_ND: b [N, D], with dW = b^T H for the activations H [N, F] of the tokens that were solved for.
        bias_D: [D]; None without one.
        path: the lambdas tried, from the largest to the smallest.
        residual: of the linear solve that gave the change.
        refitted: the change was solved again on all tokens; the errors in ``path`` are of the fit without the held-out
            ones.
        reason: None when there is a change.
    """

    ridge: float | None = None
    change_DF: Tensor | None = None
    bias_D: Tensor | None = None
    path: tuple[PathPoint, ...] = ()
    residual: float | None = None
    refitted: bool = False
    reason: Reason | None = None
    dual_ND: Tensor | None = None

    @property
    def held_out_error(self) -> float:
        """Error on held-out tokens relative to that of W0, so at most 1: that of ``ridge``, or 1 where W0 stays."""
        errors = [point.held_out_error for point in self.path if point.ridge == self.ridge]
        return 1.0 if not errors or errors[0] is None else errors[0]


@dataclass(frozen=True)
class Tokens:
    """Tokens that count, tokens left out as not finite, and whether the sums over them are finite."""

    count: int
    dropped: int
    finite: bool


@dataclass(frozen=True)
class Path(Generic[SolutionT]):
    """The lambdas tried; the best of them and its solution, None where none is better than W0."""

    points: tuple[PathPoint, ...]
    chosen: PathPoint | None = None
    solution: SolutionT | None = None

    @property
    def reason(self) -> Reason:
        """Why none of the lambdas was chosen."""
        solved = any(point.held_out_error is not None for point in self.points)
        return "no gain on held-out tokens" if solved else "singular"


def follow_path(
    ridges: Sequence[float], solve: Callable[[float], tuple[PathPoint, SolutionT | None]]
) -> Path[SolutionT]:
    """Solve for one lambda after the other until the held-out error rises, and keep the best.

    Args:
        ridges: from the largest to the smallest (see ``descending``).
        solve: lambda -> its errors, and the solution; None: singular.
    """
    points: list[PathPoint] = []
    chosen, best = None, None
    least, last = 1.0, math.inf
    for ridge in ridges:
        point, solution = solve(ridge)
        points.append(point)
        error = point.held_out_error
        if error is None:
            continue
        if error < least:
            chosen, best, least = point, solution, error
        if error > last:
            break
        last = error
    return Path(tuple(points), chosen, best)


def why_not(width: int, fit: Tokens, held_out: Tokens) -> Reason | None:
    """Return why nothing can be solved with these channels and tokens, or None."""
    if width == 0:
        return "no channels"
    missing: Sequence[tuple[Tokens, Reason]] = ((fit, "no tokens"), (held_out, "no held-out tokens"))
    for tokens, reason in missing:
        if not tokens.finite or (tokens.count == 0 and tokens.dropped > 0):
            return "not finite"
        if tokens.count == 0:
            return reason
    return None


def relative(error: float, energy: float) -> float:
    """Return error / energy; where W0 leaves nothing to explain: 1 if that stays so, else infinity."""
    if energy > 0:
        return error / energy
    return 1.0 if error == 0 else math.inf


def descending(ridges: Sequence[float]) -> list[float]:
    """Return each lambda once, the largest first.

    Raises:
        ValueError: there is none at all, or one that is no number >= 0.
    """
    if not ridges or not all(math.isfinite(ridge) and ridge >= 0 for ridge in ridges):
        raise ValueError(f"ridges are one or more numbers >= 0, not {list(ridges)}")
    return sorted(set(ridges), reverse=True)
