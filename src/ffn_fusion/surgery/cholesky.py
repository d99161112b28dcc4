"""(sum of G_i + diag(ridge)) X = C by Cholesky, in one F x F buffer; checked, and refined where that isn't enough.

A factorisation in the dtype of G; the residual C - A X in float64, whatever G is in. Where it is too large, one step of
refinement X += A^-1 (C - A X); where that isn't enough either, or A isn't positive in that dtype, all again in float64.

**Why a factorisation for every ridge.** Measured at F 7680, D 576 on 2 cores, in seconds: factorise 1.9, substitute
1.0, product for the residual 2.0 (float64). One eigendecomposition would serve all ridges and takes 188, as long as
60 of them. The factor for one ridge as preconditioner of conjugate gradients for the others: one step is a substitution
and a product, as long as the factorisation that it would save. Float64 factorises in 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.surgery.normal_equations import product

# Of |C - A X| / |C|. The sum of squares is then off by less than tolerance^2 cond(A) of what the solution gains, and
# cond(A) <= 1 + F / lambda: 1e-3 of it for F = 10,000 and lambda = 0.001.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Solution:
    """X [F, D], (sum of G_i) X without the ridge, both float64, and |C - A X| / |C|."""

    x_FD: Tensor
    product_FD: Tensor
    residual: float


class CholeskySolver:
    """Solves for one ridge after the other, from the largest to the smallest."""

    def __init__(self, grams: Sequence[Tensor], tolerance: float = TOLERANCE) -> None:
        """The G_i [F, F], symmetric and of one dtype, are kept and not written to. Their sum is A without the ridge."""
        self._grams = grams
        self._tolerance = tolerance
        # What isn't positive in float32 for a ridge isn't for a smaller one: float64 from there on.
        self._dtypes = [torch.float32, torch.float64] if grams[0].dtype == torch.float32 else [torch.float64]
        self._buffer: Tensor | None = None

    def solve(self, ridge_F: Tensor, right_FD: Tensor) -> Solution | None:
        """X for diag(ridge) and C, float64 each. None: A is singular, as far as float64 can tell, or isn't finite."""
        while self._dtypes:
            solution = self._solve(ridge_F, right_FD, self._dtypes[0])
            if solution is not None:
                return solution
            self._dtypes = self._dtypes[1:]
            self._buffer = None
        return None

    def _solve(self, ridge_F: Tensor, right_FD: Tensor, dtype: torch.dtype) -> Solution | None:
        if not self._factor(ridge_F, dtype):
            return None
        size = float(torch.linalg.vector_norm(right_FD)) or 1.0
        x = self._back(right_FD)
        for refined in (False, True):
            prod = product(self._grams, x)
            left = right_FD - prod - ridge_F[:, None] * x
            residual = float(torch.linalg.vector_norm(left)) / size
            if residual <= self._tolerance:
                return Solution(x, prod, residual)
            if not refined:
                x = x + self._back(left)
        return None

    def _factor(self, ridge_F: Tensor, dtype: torch.dtype) -> bool:
        """The factor of A, in place; False: A isn't positive definite."""
        first, *rest = self._grams
        if self._buffer is None:
            self._buffer = torch.empty_like(first, dtype=dtype)
        self._buffer.copy_(first)
        for gram in rest:
            self._buffer += gram
        self._buffer.diagonal().add_(ridge_F)
        # LAPACK's layout is by columns. A is symmetric, so its transpose is A in that layout: nothing is copied.
        factor, info = self._buffer.mT, torch.empty(0, dtype=torch.int32, device=first.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        return int(info) == 0

    def _back(self, right_FD: Tensor) -> Tensor:
        """A^-1 C in float64 numbers of the factor's accuracy. Not cholesky_solve, which copies the factor."""
        assert self._buffer is not None
        half = torch.linalg.solve_triangular(self._buffer.mT, right_FD.to(self._buffer.dtype), upper=False)
        x: Tensor = torch.linalg.solve_triangular(self._buffer, half, upper=True)
        return x.double()
