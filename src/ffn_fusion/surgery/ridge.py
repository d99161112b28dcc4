"""Repair of an output projection in closed form: the ridge regression that moves W0 no further than it pays.

    min over W   sum_t w_t |h_t W^T - y_t|^2  +  lambda s |W - W0|^2          s = mean of G's diagonal

    (G + lambda s I) dW^T = C       dW = W - W0,   r_t = y_t - h_t W0^T,   G = H^T diag(w) H,   C = H^T diag(w) R

lambda has no unit: it means the same for large and small activations, many and few tokens. It is chosen on tokens that
the fit hasn't seen. A bias has no ridge: it is one number a channel, and hardly overfits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ffn_fusion.surgery.cholesky import TOLERANCE, CholeskySolver, Solution
from ffn_fusion.surgery.normal_equations import PRODUCT_ROWS, NormalEquations, normal_equations_bytes, require_alike
from ffn_fusion.surgery.ridge_choice import Fit, PathPoint, Tokens, better, descending, relative, why_none, why_not


def solve_path(
    fit: NormalEquations,
    ridges: Sequence[float],
    held_out: NormalEquations,
    *,
    refit: bool = True,
    tolerance: float = TOLERANCE,
) -> Fit:
    """Solve for every lambda, take the one of the least error on held-out tokens; W0 where none beats it.

    Args:
        fit: sums of the tokens to fit.
        ridges: lambdas >= 0, in any order.
        held_out: sums of other tokens, of the same shape.
        refit: solve once more at the chosen lambda, on both sets of tokens. That solution has seen the held-out tokens,
            so nothing is left to measure it on.
        tolerance: of the linear solve's residual; a lambda that stays above it is given up.

    Returns:
        Its ``path`` ends at the first lambda whose held-out error is above its predecessor's: what follows overfits.
        Never worse than W0 on the held-out tokens. Numbers never raise: ``Fit.reason`` says what is wrong with them.

    Raises:
        ValueError: no lambda, a negative one, or sums of different shapes.
    """
    ridges = descending(ridges)
    require_alike(fit, held_out)
    refusal = why_not(fit.width, *(Tokens(sums.count, sums.dropped, sums.finite) for sums in (fit, held_out)))
    if refusal is not None:
        return Fit(reason=refusal)

    path: list[PathPoint] = []
    chosen: PathPoint | None = None
    best: Solution | None = None
    solver = CholeskySolver([fit.gram], tolerance)
    last = math.inf
    for ridge in ridges:
        solution = solver.solve(ridge_vector(ridge, fit.diagonal, fit.bias), fit.cross)
        point = PathPoint(ridge) if solution is None else _judge(ridge, solution, fit, held_out)
        path.append(point)
        if better(point, chosen):
            chosen, best = point, solution
        if point.held_out_error is not None:
            if point.held_out_error > last:
                break
            last = point.held_out_error
    del solver  # its F x F buffer goes before the next one comes
    if chosen is None or best is None:
        return Fit(path=tuple(path), reason=why_none(path))

    again = _solve_both(fit, held_out, chosen.ridge, tolerance) if refit else None
    final = best if again is None else again
    change, bias = split(final.x_FD.to(fit.dtype), fit.bias)
    return Fit(chosen.ridge, change, bias, tuple(path), final.residual, refitted=again is not None)


def _judge(ridge: float, solution: Solution, fit: NormalEquations, held_out: NormalEquations) -> PathPoint:
    return PathPoint(
        ridge,
        relative(fit.error_of(solution.x_FD, solution.product_FD), fit.energy),
        relative(held_out.error(*split(solution.x_FD, fit.bias)), held_out.energy),
        solution.residual,
    )


def _solve_both(fit: NormalEquations, held_out: NormalEquations, ridge: float, tolerance: float) -> Solution | None:
    ridge_F = ridge_vector(ridge, fit.diagonal + held_out.diagonal, fit.bias)
    return CholeskySolver([fit.gram, held_out.gram], tolerance).solve(ridge_F, fit.cross + held_out.cross)


def ridge_vector(ridge: float, diagonal_F: Tensor, bias: bool) -> Tensor:
    """lambda s for every channel, and 0 for a bias: [F] or [F + 1]. From G's diagonal without the bias's.

    s is 1 where all activations are 0: the equations then have the solution 0.
    """
    values = torch.full_like(diagonal_F, ridge * (float(diagonal_F.mean()) or 1.0))
    return torch.cat([values, values.new_zeros(1)]) if bias else values


def split(x_FD: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """dW^T, with the bias as its last row if there is one -> dW [D, F] and the bias [D]."""
    return (x_FD[:-1].mT.contiguous(), x_FD[-1].clone()) if bias else (x_FD.mT.contiguous(), None)


def solve_path_bytes(width: int, hidden: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory of ``solve_path`` with both its sums, in bytes: three F x F matrices and about a dozen F x D ones.

    Where float32 sums aren't precise enough for a lambda, the third matrix becomes float64: 4 F^2 bytes more.
    """
    factor, blocks = width * width * dtype.itemsize, 10 * width * hidden * 8
    return 2 * normal_equations_bytes(width, hidden, dtype) + factor + blocks + PRODUCT_ROWS * width * 8
