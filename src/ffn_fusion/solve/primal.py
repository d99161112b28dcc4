"""Ridge regression by its normal equations (primal): the change of a matrix that moves it no further than it pays.

    min over W   sum_t w_t |h_t W^T - y_t|^2  +  lambda s |W - W0|^2          s = mean of G's diagonal

    (G + lambda s I) dW^T = C       dW = W - W0,   r_t = y_t - h_t W0^T,   G = H^T diag(w) H,   C = H^T diag(w) R

lambda has no unit: it means the same for large and small activations, many and few tokens. It is chosen on tokens that
the fit has not seen. A bias has no ridge: it is one number a channel, and hardly overfits.

F x F numbers, whatever the number of tokens N: the form for N > F. ``solve.dual`` has the same solution in N x N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ffn_fusion.solve.choice import Fit, PathPoint, Tokens, descending, follow_path, relative, why_not
from ffn_fusion.solve.cholesky import TOLERANCE, CholeskySolver, Solution, solver_bytes
from ffn_fusion.solve.normal_equations import PRODUCT_ROWS, NormalEquations, normal_equations_bytes, require_alike


def solve_primal(
    fit: NormalEquations,
    ridges: Sequence[float],
    held_out: NormalEquations,
    *,
    refit: bool = True,
    tolerance: float = TOLERANCE,
    held_out_error: Callable[[Tensor], float] | None = None,
) -> Fit:
    """Solve for every lambda and take the one of the least error on held-out tokens; W0 stays where none beats it.

    Args:
        fit: sums of the tokens to fit.
        ridges: lambdas >= 0, in any order.
        held_out: sums of other tokens, of the same shape.
        refit: solve once more at the chosen lambda, on both sets of tokens. That solution has seen the held-out tokens,
            so nothing is left to measure it on.
        tolerance: of the linear solve's residual; a lambda that stays above it is given up.
        held_out_error: (dW^T, with the bias as last row, in float64) -> the error on the held-out tokens, where that
            isn't the sum of squares that the regression minimises; W0's is ``held_out.energy``.

    Returns:
        A fit whose ``path`` ends at the first lambda whose held-out error is above its predecessor's. Never worse than
        W0 on the held-out tokens. Numbers never raise: ``Fit.reason`` says what is wrong with them.

    Raises:
        ValueError: no lambda, a negative one, or sums of different shapes.
    """
    ridges = descending(ridges)
    require_alike(fit, held_out)
    refusal = why_not(fit.width, *(Tokens(sums.count, sums.dropped, sums.finite) for sums in (fit, held_out)))
    if refusal is not None:
        return Fit(reason=refusal)
    solver = CholeskySolver([fit.gram], tolerance)

    def judge(columns: slice, x_FC: Tensor, product_FC: Tensor) -> tuple[float, float]:
        return fit.change_of_error(columns, x_FC, product_FC), held_out.change_of_error(columns, x_FC)

    def solve(ridge: float) -> tuple[PathPoint, Solution | None]:
        solution = solver.solve(ridge_vector(ridge, fit.diagonal, fit.bias), fit.cross, judge)
        if solution is None:
            return PathPoint(ridge), None
        left = [sums.error_after(change) for sums, change in zip(both, solution.judged, strict=True)]
        if held_out_error:
            left[1] = held_out_error(solution.x_FD)
        errors = [relative(error, sums.energy) for error, sums in zip(left, both, strict=True)]
        return PathPoint(ridge, errors[0], errors[1], solution.residual), solution

    both = (fit, held_out)
    path = follow_path(ridges, solve)
    solver.forget()  # its F x F buffer goes before the next one comes
    if path.chosen is None or path.solution is None:
        return Fit(path=path.points, reason=path.reason)
    ridge = path.chosen.ridge
    again = _solve_both(fit, held_out, ridge, tolerance) if refit else None
    final = again or path.solution
    change, bias = _split(final.x_FD, fit.bias)
    return Fit(ridge, change, bias, path.points, final.residual, refitted=again is not None)


def _solve_both(fit: NormalEquations, held_out: NormalEquations, ridge: float, tolerance: float) -> Solution | None:
    ridge_F = ridge_vector(ridge, fit.diagonal + held_out.diagonal, fit.bias)
    return CholeskySolver([fit.gram, held_out.gram], tolerance).solve(ridge_F, fit.cross + held_out.cross)


def ridge_vector(ridge: float, diagonal_F: Tensor, bias: bool) -> Tensor:
    """Return lambda s for every channel, and 0 for a bias: [F] or [F + 1], from G's diagonal without the bias's.

    s is 1 where all activations are 0: the equations then have the solution 0.
    """
    values = torch.full_like(diagonal_F, ridge * (float(diagonal_F.mean()) or 1.0))
    return torch.cat([values, values.new_zeros(1)]) if bias else values


def _split(x_FD: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """dW^T, with the bias as its last row if there is one -> dW [D, F] and the bias [D]."""
    return (x_FD[:-1].mT.contiguous(), x_FD[-1].clone()) if bias else (x_FD.mT.contiguous(), None)


def primal_bytes(width: int, hidden: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the memory of ``solve_primal`` with both its sums, in bytes: three F x F matrices and some F x D ones.

    Where float32 sums aren't precise enough for a lambda, the third matrix becomes float64: 4 F^2 bytes more.
    """
    sums = 2 * normal_equations_bytes(width, hidden, dtype)
    change = width * hidden * (8 + dtype.itemsize)  # C of both sums, and dW
    return sums + solver_bytes(width, hidden, dtype) + change + PRODUCT_ROWS * width * 8
