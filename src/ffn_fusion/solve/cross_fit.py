"""The dual of a ridge regression (``solve.dual``) for two folds of tokens that judge each other.

    change at t = k(t, a) b,   b = W^1/2 (W^1/2 K W^1/2 + lambda s I)^-1 W^1/2 R

H [M, F] the activations of the tokens fitted (anchors), R [M, D] what is missing there, W their weights; K = H H^T,
k(t, a) = h_t . h_a. Every token is changed, and lambda judged on it, by the fold that hasn't seen it. No matrix of the
layer's width is made. Shapes: M anchors of a fold, O of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Lambdas tried: larger ones than for a repair, which is fitted to far more tokens."""
_MIDDLE = 1.0
_SAFE = 0.1  # lambdas that float32 is precise enough for: the condition is F / lambda at most


@dataclass(frozen=True)
class Fold:
    """One fold's anchors: K among them [M, M] and to the other fold's [M, O], R [M, D] and weights [M].

    ``error``: what a change adds to their outputs [M, D] -> their error, where that isn't the weighted sum of squares.
    """

    within: Tensor
    across: Tensor
    residual: Tensor
    weights: Tensor
    error: Callable[[Tensor], float] | None = None


@dataclass(frozen=True)
class CrossFit:
    """What was found: ``ridge`` is lambda, None where W0 stays; ``error`` what is left on anchors of the other fold,
    relative to W0 and so at most 1; ``dual`` is b [M, D] of each fold.
    """

    ridge: float | None = None
    error: float = 1.0
    dual: tuple[Tensor, Tensor] | None = None


def cross_fit(folds: tuple[Fold, Fold], width: int, ridges: Sequence[float] = RIDGES) -> CrossFit:
    """Fit each fold for the lambda that leaves the least on the other; W0 stays where none leaves less than it.

    Lambdas are tried from the middle on, to the side where the error falls, until it rises.

    Args:
        width: F, of all FFNs together.
    """
    ridges = sorted(ridges)
    start = min(range(len(ridges)), key=lambda k: abs(ridges[k] - _MIDDLE))
    whole = sum(_energy(fold.residual, fold.weights) for fold in folds)
    if not 0 < whole < float("inf"):
        return CrossFit()
    first = _fit(folds, width, ridges[start], whole)
    best = first if first.error < 1 else CrossFit()
    for side in (1, -1):  # larger lambdas are cheaper to be wrong with
        last, k = first.error, start + side
        while 0 <= k < len(ridges):
            found = _fit(folds, width, ridges[k], whole)
            if not found.error < last:
                break
            best = found if found.error < best.error else best
            last, k = found.error, k + side
        if last < first.error:
            break
    return best


def _fit(folds: tuple[Fold, Fold], width: int, ridge: float, whole: float) -> CrossFit:
    solved = [_solve(fold, width, ridge) for fold in folds]
    if solved[0] is None or solved[1] is None:
        return CrossFit(ridge, float("inf"))
    left = sum(
        _left(fold, fold.across @ other)
        for fold, other in zip(folds, reversed(solved), strict=True)
        if other is not None
    )
    return CrossFit(ridge, left / whole, (solved[0], solved[1]))


def _solve(fold: Fold, width: int, ridge: float) -> Tensor | None:
    """b [M, D]; None where the matrix isn't positive."""
    root = fold.weights.sqrt()
    dtype = fold.within.dtype if ridge >= _SAFE else torch.float64
    matrix = (root[:, None] * fold.within * root).to(dtype)
    scale = float(matrix.diagonal().double().sum()) / width or 1.0
    matrix.diagonal().add_(ridge * scale)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        return None
    right = (root[:, None] * fold.residual).to(dtype)
    return root[:, None] * torch.cholesky_solve(right, factor).to(fold.within.dtype)


def _left(fold: Fold, added_MD: Tensor) -> float:
    return fold.error(added_MD) if fold.error else _energy(fold.residual - added_MD, fold.weights)


def _energy(residual_MD: Tensor, weights_M: Tensor) -> float:
    return float((residual_MD.double().square().sum(1) * weights_M.double()).sum())


def solve_flops(anchors: int, hidden: int) -> float:
    """FLOPs of ``cross_fit`` with this number of anchors in each fold, if it tries about four lambdas."""
    return 4 * 2 * (anchors**3 / 3 + 4.0 * anchors**2 * hidden)


def solve_bytes(anchors: int, hidden: int, itemsize: int) -> int:
    """What ``cross_fit`` takes for a moment, its arguments included."""
    return anchors**2 * (4 * itemsize + 2 * 8) + 8 * anchors * hidden * 8
