"""Which lambda of a ridge regression: the one of the least error on held-out tokens, and none unless it beats W0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Reason = Literal[
    "no channels",
    "no tokens",
    "no held-out tokens",
    "not finite",
    "singular",
    "no gain on held-out tokens",
]


@dataclass(frozen=True)
class PathPoint:
    """One lambda.

    Attributes:
        ridge: lambda.
        fit_error: weighted sum of squares on the fit's tokens, relative to that of W0; None: not solved.
        held_out_error: the same on the held-out tokens.
        residual: of the linear solve, |C - A dW^T| / |C|.
    """

    ridge: float
    fit_error: float | None = None
    held_out_error: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class Fit:
    """What a repair found.

    Attributes:
        ridge: the lambda of the least held-out error; None: W0 stays, and ``reason`` says why.
        change_DF: dW [D, F].
        bias_D: [D]; None without one.
        path: the lambdas tried, from the largest to the smallest.
        residual: of the linear solve that gave ``change_DF``.
        refitted: ``change_DF`` was solved again on all tokens; the errors in ``path`` are of the fit without the
            held-out ones.
        reason: None when there is a change.
    """

    ridge: float | None = None
    change_DF: Tensor | None = None
    bias_D: Tensor | None = None
    path: tuple[PathPoint, ...] = ()
    residual: float | None = None
    refitted: bool = False
    reason: Reason | None = None

    @property
    def held_out_error(self) -> float:
        """On held-out tokens, relative to W0 and so at most 1: that of ``ridge``, or 1 where W0 stays."""
        errors = [point.held_out_error for point in self.path if point.ridge == self.ridge]
        return 1.0 if not errors or errors[0] is None else errors[0]


@dataclass(frozen=True)
class Tokens:
    """Tokens that count, tokens left out as not finite, and whether the sums over them are finite."""

    count: int
    dropped: int
    finite: bool


def why_not(width: int | None, fit: Tokens, held_out: Tokens) -> Reason | None:
    """Why there is nothing to solve with so many channels (None: unknown) and these tokens; None: there is."""
    if width == 0:
        return "no channels"
    missing: Sequence[tuple[Tokens, Reason]] = ((fit, "no tokens"), (held_out, "no held-out tokens"))
    for tokens, reason in missing:
        if not tokens.finite or (tokens.count == 0 and tokens.dropped > 0):
            return "not finite"
        if tokens.count == 0:
            return reason
    return None


def why_none(path: Sequence[PathPoint]) -> Reason:
    """Why none of the lambdas tried was chosen."""
    solved = any(point.held_out_error is not None for point in path)
    return "no gain on held-out tokens" if solved else "singular"


def better(point: PathPoint, chosen: PathPoint | None) -> bool:
    """Less held-out error than the best so far, which to begin with is W0's: 1."""
    best = 1.0 if chosen is None or chosen.held_out_error is None else chosen.held_out_error
    return point.held_out_error is not None and point.held_out_error < best


def relative(error: float, energy: float) -> float:
    """error / energy; where W0 leaves nothing to explain: 1 if that stays so, else infinity."""
    if energy > 0:
        return error / energy
    return 1.0 if error == 0 else math.inf


def descending(ridges: Sequence[float]) -> list[float]:
    """Each lambda once, the largest first.

    Raises:
        ValueError: none at all, or one that is no number >= 0.
    """
    if not ridges or not all(math.isfinite(ridge) and ridge >= 0 for ridge in ridges):
        raise ValueError(f"ridges are one or more numbers >= 0, not {list(ridges)}")
    return sorted(set(ridges), reverse=True)
