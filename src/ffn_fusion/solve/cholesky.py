"""(sum of G_i + diag(ridge)) X = C by Cholesky, in one F x F buffer; checked, and refined where that isn't enough.

A factorisation in the dtype of G; the residual C - A X in float64, whatever G is in. Where it is too large, one step of
refinement X += A^-1 (C - A X); where that isn't enough either, or A isn't positive in that dtype, all again in float64.

**Why a factorisation for every ridge.** Measured at F 7680, D 576 on 2 cores, in seconds: factorise 1.9, substitute
1.0, product for the residual 2.0 (float64). One eigendecomposition would serve all ridges and takes 188, as long as
60 of them. The factor for one ridge as preconditioner of conjugate gradients for the others: one step is a substitution
and a product, as long as the factorisation that it would save. Float64 factorises in 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.solve.normal_equations import product

# Of |C - A X| / |C|. The sum of squares is then off by less than tolerance^2 cond(A) of what the solution gains, and
# cond(A) <= 1 + F / lambda: 1e-3 of it for F = 10,000 and lambda = 0.001.
TOLERANCE = 1e-5
_COLUMNS = 2048  # of C that are solved at a time: the float64 work on them stays small beside the matrices

Judge = Callable[[slice, Tensor, Tensor], tuple[float, ...]]
"""(columns, X there, (sum of G_i) X there without the ridge, both float64) -> numbers that add up over columns."""


@dataclass(frozen=True)
class Solution:
    """The solution of one ridge.

    Attributes:
        x_FD: X, in the dtype of the G_i.
        judged: what ``judge`` said, summed over all columns.
        residual: |C - A X| / |C| of the worst group of columns.
    """

    x_FD: Tensor
    judged: tuple[float, ...]
    residual: float


def _no_judgement(columns: slice, x_FC: Tensor, product_FC: Tensor) -> tuple[float, ...]:
    return ()


class CholeskySolver:
    """Solves for one ridge after the other, from the largest to the smallest."""

    def __init__(self, grams: Sequence[Tensor], tolerance: float = TOLERANCE) -> None:
        """The G_i [F, F], symmetric and of one dtype, are kept and not written to. Their sum is A without the ridge."""
        self._grams = grams
        self._tolerance = tolerance
        # What isn't positive in float32 for a ridge isn't for a smaller one: float64 from there on.
        self._dtypes = [torch.float32, torch.float64] if grams[0].dtype == torch.float32 else [torch.float64]
        self._buffer: Tensor | None = None

    def solve(self, ridge_F: Tensor, right_FD: Tensor, judge: Judge = _no_judgement) -> Solution | None:
        """Solve for diag(ridge) in float64 and C; None: A is singular in float64, or isn't finite."""
        while self._dtypes:
            solution = self._solve(ridge_F, right_FD, judge, self._dtypes[0])
            if solution is not None:
                return solution
            self._dtypes = self._dtypes[1:]
            self.forget()
        return None

    def forget(self) -> None:
        """Give the buffer's memory back."""
        self._buffer = None

    def _solve(self, ridge_F: Tensor, right_FD: Tensor, judge: Judge, dtype: torch.dtype) -> Solution | None:
        if not self._factor(ridge_F, dtype):
            return None
        x = torch.empty(right_FD.shape, dtype=self._grams[0].dtype, device=right_FD.device)
        judged: list[tuple[float, ...]] = []
        worst = 0.0
        for start in range(0, right_FD.shape[1], _COLUMNS):
            columns = slice(start, min(start + _COLUMNS, right_FD.shape[1]))
            found = self._checked(ridge_F, right_FD[:, columns].double())
            if found is None:
                return None
            some, prod, residual = found
            judged.append(judge(columns, some, prod))
            x[:, columns] = some
            worst = max(worst, residual)
        return Solution(x, tuple(sum(part) for part in zip(*judged, strict=True)), worst)

    def _checked(self, ridge_F: Tensor, right_FC: Tensor) -> tuple[Tensor, Tensor, float] | None:
        size = float(torch.linalg.vector_norm(right_FC)) or 1.0
        x = self._back(right_FC)
        for refined in (False, True):
            prod = product(self._grams, x)
            left = right_FC - prod - ridge_F[:, None] * x
            residual = float(torch.linalg.vector_norm(left)) / size
            if residual <= self._tolerance:
                return x, prod, residual
            if not refined:
                x = x + self._back(left)
        return None

    def _factor(self, ridge_F: Tensor, dtype: torch.dtype) -> bool:
        """The factor of A, in place; False: A isn't positive definite."""
        first, *rest = self._grams
        if self._buffer is None:
            self._buffer = torch.empty(first.shape, dtype=dtype, device=first.device)
        self._buffer.copy_(first)
        for gram in rest:
            self._buffer += gram
        self._buffer.diagonal().add_(ridge_F)
        # LAPACK's layout is by columns. A is symmetric, so its transpose is A in that layout: nothing is copied.
        factor, info = self._buffer.mT, torch.empty(0, dtype=torch.int32, device=first.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        return int(info) == 0

    def _back(self, right_FC: Tensor) -> Tensor:
        """A^-1 C in float64 numbers of the factor's accuracy. Not cholesky_solve, which copies the factor."""
        assert self._buffer is not None
        half = torch.linalg.solve_triangular(self._buffer.mT, right_FC.to(self._buffer.dtype), upper=False)
        x: Tensor = torch.linalg.solve_triangular(self._buffer, half, upper=True)
        return x.double()


def solver_bytes(size: int, columns: int, dtype: torch.dtype) -> int:
    """Return what solving takes beside the G_i and C, in bytes: the factor, X of the best ridge so far and of the next
    one, and the work on a group of columns.
    """
    return size * size * dtype.itemsize + size * (2 * columns * dtype.itemsize + 5 * 8 * min(columns, _COLUMNS))
