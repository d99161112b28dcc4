"""The ridge regression of ``solve.primal`` by its dual: N x N numbers for N tokens, however wide the layer is.

    primal:  dW^T = (H^T W H + lambda s I)^-1 H^T W R                               F x F
    dual:    dW^T = H^T b,   b = W^1/2 (W^1/2 K W^1/2 + lambda s I)^-1 W^1/2 R      N x N,  K = H H^T

W = diag(w). Both are the same solution, in exact arithmetic: s is the mean diagonal of H^T W H, which is
trace(W^1/2 K W^1/2) / F. K is a sum over channels, so it can be added up from a few of them at a time (FFNs side by
side are channels, too), and no [N, F] matrix has to be held. A bias c, which has no ridge, follows by elimination: with
A the matrix above and u = w^1/2, from  A a + u c = W^1/2 R  and  u^T a = 0.

Shapes: N tokens, of which the first n are fitted and the others held out; F channels, D output channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.solve.choice import Fit, PathPoint, Tokens, descending, follow_path, relative, why_not
from ffn_fusion.solve.cholesky import TOLERANCE, CholeskySolver, solver_bytes
from ffn_fusion.solve.normal_equations import PRODUCT_ROWS


def solve_dual(
    kernel_NN: Tensor,
    residual_ND: Tensor,
    weights_N: Tensor,
    width: int,
    fitted: int,
    ridges: Sequence[float],
    *,
    bias: bool = False,
    tolerance: float = TOLERANCE,
    held_out_error: Callable[[Tensor], float] | None = None,
) -> Fit:
    """Solve as ``solve_primal`` does, with the refit; the change is ``Fit.dual_ND`` b, so that dW = b^T H.

    Args:
        kernel_NN: K in float32 or float64, symmetric; it is overwritten.
        residual_ND: R.
        weights_N: w >= 0. A token that isn't finite, here or in K or R, weighs nothing: its row of b is 0.
        width: F.
        fitted: n.
        ridges: lambdas >= 0, in any order.
        held_out_error: what the change adds to the outputs of the held-out tokens [N - n, D] -> their error, where that
            isn't the sum of squares that the regression minimises.

    Raises:
        ValueError: no lambda, or a negative one.
    """
    ridges = descending(ridges)
    tokens = _weighted(kernel_NN, residual_ND, weights_N, width, bias)
    fit, held_out = tokens.counts(slice(0, fitted)), tokens.counts(slice(fitted, None))
    refusal = why_not(width, fit, held_out)
    if refusal is not None:
        return Fit(reason=refusal)
    solver = CholeskySolver([tokens.kernel[:fitted, :fitted]], tolerance)
    energies = tokens.energy(slice(0, fitted)), tokens.energy(slice(fitted, None))

    def solve(ridge: float) -> tuple[PathPoint, _Dual | None]:
        found = tokens.solve(solver, fitted, ridge)
        if found is None:
            return PathPoint(ridge), None
        left = list(found.errors)
        if held_out_error:
            left[1] = held_out_error(tokens.explained(found, fitted))
        errors = [relative(error, energy) for error, energy in zip(left, energies, strict=True)]
        return PathPoint(ridge, errors[0], errors[1], found.residual), found

    path = follow_path(ridges, solve)
    solver.forget()
    if path.chosen is None or path.solution is None:
        return Fit(path=path.points, reason=path.reason)
    ridge, count = path.chosen.ridge, len(tokens.root)
    again = tokens.solve(CholeskySolver([tokens.kernel], tolerance), count, ridge)
    final = again or path.solution
    return Fit(
        ridge,
        bias_D=final.bias_D,
        path=path.points,
        residual=final.residual,
        refitted=again is not None,
        dual_ND=tokens.dual(final),
    )


@dataclass(frozen=True)
class _Dual:
    """a [n, D] of the equations above, the bias [D], and the sums of squares that are left, fitted and held out."""

    a_ND: Tensor
    bias_D: Tensor | None
    errors: tuple[float, ...]
    residual: float


@dataclass(frozen=True)
class _Tokens:
    """K and R scaled by the roots of the weights, and the roots; rows of tokens that aren't finite are 0."""

    kernel: Tensor
    residual: Tensor
    root: Tensor
    dropped: Tensor
    width: int
    bias: bool

    def energy(self, part: slice) -> float:
        return float(self.residual[part].double().square().sum())

    def counts(self, part: slice) -> Tokens:
        finite = bool(self.kernel.diagonal()[part].sum().isfinite()) and math.isfinite(self.energy(part))
        return Tokens(int((self.root[part] > 0).sum()), int(self.dropped[part].sum()), finite)

    def solve(self, solver: CholeskySolver, count: int, ridge: float) -> _Dual | None:
        """For the first ``count`` tokens, which the solver knows K of."""
        scale = float(self.kernel.diagonal()[:count].double().sum()) / self.width or 1.0
        ridge_N = torch.full((count,), ridge * scale, dtype=torch.float64, device=self.kernel.device)
        right, ones, bias = self.residual[:count], _Ones(self.root[:count].double()), None
        if self.bias:
            right, bias = torch.cat([self.root[:count, None], right], 1), self.residual.new_zeros(right.shape[1])

        def judge(columns: slice, x_NC: Tensor, product_NC: Tensor) -> tuple[float, float]:
            if bias is not None:
                columns, x_NC, product_NC = ones.eliminate(columns, x_NC, product_NC, bias)
            unseen = self.kernel[count:, :count] @ x_NC.to(self.kernel)
            return (
                self._error(slice(0, count), columns, product_NC, bias),
                self._error(slice(count, None), columns, unseen, bias),
            )

        solution = solver.solve(ridge_N, right, judge)
        if solution is None:
            return None
        a = solution.x_FD if bias is None else solution.x_FD[:, 1:] - solution.x_FD[:, :1] * bias
        return _Dual(a, bias, solution.judged, solution.residual)

    def dual(self, solution: _Dual) -> Tensor:
        """Return b [N, D] of a solution; 0 for the tokens that it wasn't fitted to."""
        b_ND, count = torch.zeros_like(self.residual), len(solution.a_ND)
        b_ND[:count] = solution.a_ND * self.root[:count, None]
        return b_ND

    def explained(self, dual: _Dual, count: int) -> Tensor:
        """Return what a solution for the first ``count`` tokens adds to the others' outputs; 0 where w is 0."""
        root = self.root[count:, None]
        added = self.kernel[count:, :count] @ dual.a_ND.to(self.kernel) / torch.where(root > 0, root, 1.0)
        return added if dual.bias_D is None else added + dual.bias_D

    def _error(self, part: slice, columns: slice, explained_NC: Tensor, bias_D: Tensor | None) -> float:
        """Sum of squares that is left on some tokens."""
        right = self.residual[part, columns].double() - explained_NC.double()
        if bias_D is not None:
            right -= self.root[part].double()[:, None] * bias_D[columns].double()
        return float(right.square().sum())


@dataclass
class _Ones:
    """u, and of a solve whose first column is u: x with (A + ridge) x = u, and A x."""

    root_N: Tensor
    x_N: Tensor | None = None
    product_N: Tensor | None = None

    def eliminate(
        self, columns: slice, x_NC: Tensor, product_NC: Tensor, bias_D: Tensor
    ) -> tuple[slice, Tensor, Tensor]:
        """Turn columns of a solve without a bias into those of R with one, which goes into ``bias_D``."""
        if columns.start == 0:
            self.x_N, self.product_N = x_NC[:, 0], product_NC[:, 0]
            x_NC, product_NC = x_NC[:, 1:], product_NC[:, 1:]
        assert self.x_N is not None
        assert self.product_N is not None
        columns = slice(max(columns.start - 1, 0), columns.stop - 1)
        bias = (self.root_N @ x_NC) / (self.root_N @ self.x_N)
        bias_D[columns] = bias
        return columns, x_NC - self.x_N[:, None] * bias, product_NC - self.product_N[:, None] * bias


def _weighted(kernel: Tensor, residual: Tensor, weights: Tensor, width: int, bias: bool) -> _Tokens:
    root = weights.to(kernel).sqrt()
    usable = kernel.diagonal().isfinite() & residual.isfinite().all(1) & root.isfinite()
    root = torch.where(usable, root, 0.0)
    if not bool(usable.all()):
        kernel.masked_fill_(~usable[:, None], 0.0).masked_fill_(~usable, 0.0)
    kernel.mul_(root[:, None]).mul_(root)
    scaled = torch.where(usable[:, None], residual, 0.0).to(kernel) * root[:, None]
    return _Tokens(kernel, scaled, root, ~usable, width, bias)


def dual_bytes(tokens: int, width: int, hidden: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the memory of ``solve_dual`` with its arguments, b, and the change dW made of it, in bytes.

    Where float32 isn't precise enough for a lambda, the factor becomes float64: 4 N^2 bytes more.
    """
    kernel = tokens * tokens * dtype.itemsize
    rows = 4 * tokens * hidden * dtype.itemsize  # R, what the layer gives, R scaled, b
    return (
        kernel
        + rows
        + solver_bytes(tokens, hidden, dtype)
        + width * hidden * dtype.itemsize
        + PRODUCT_ROWS * tokens * 8
    )
