"""The regression of a projection whose output is normed before it's added to the state: m(z) = g z / rms(z).

    W = argmin  sum_t w_t |m(W h_t) - goal_t|^2  +  lambda s |diag(g) (W - W0)|^2

With rms_t = rms(W0 h_t) held fixed, m is linear, and X = diag(g) (W - W0) is an ordinary ridge regression of other
residuals and weights:

    X = argmin  sum_t (w_t / rms_t^2) |h_t X^T - rms_t r_t|^2  +  lambda s |X|^2        r_t = goal_t - m(W0 h_t)

The error on held-out tokens, which chooses lambda and decides whether X is taken at all, is that of m itself, with
rms(W h_t). rms_t is fixed once: fixed again at what W gives, it would cost another regression a place.

A channel whose |g| is below 1e-3 of the root mean square of g keeps W0: it adds next to nothing, and X / g would be
huge. Shapes: N tokens, F channels of the projection's input, D of its output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ffn_fusion.blockwise.norm_after import NormAfter
from ffn_fusion.solve.choice import Fit

_LEAST = 1e-3


@dataclass(frozen=True)
class AfterNorm:
    """What a norm after a projection makes of the projection's regression."""

    norm: NormAfter

    @cached_property
    def _inverse_D(self) -> Tensor:  # noqa: N802
        """1 / g, and 0 where g is next to 0."""
        g = self.norm.scale_D.double()
        small = g.abs() <= _LEAST * g.square().mean().sqrt()
        return torch.where(small, 0.0, 1 / torch.where(small, 1.0, g))

    def regression(self, missing_ND: Tensor, weights_N: Tensor, outer_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residuals [N, D] and weights [N] to regress with.

        Args:
            missing_ND: r, what is missing in the state.
            outer_ND: z = W0 h, before the norm.
        """
        rms = self.norm.rms(outer_ND)
        return missing_ND * rms, weights_N / rms[:, 0].square()

    def error(self, outer_ND: Tensor, goal_ND: Tensor, weights_N: Tensor, added_ND: Tensor) -> float:
        """Return sum_t w_t |m(W h_t) - goal_t|^2 over tokens of weight > 0; infinity where it isn't a number.

        Args:
            outer_ND: z = W0 h.
            goal_ND: what is to be added to the state.
            added_ND: h X^T.
        """
        z = outer_ND.to(added_ND) + self.divided(added_ND)
        left = (self.norm(z) - goal_ND).double().square().sum(1)
        error = float(torch.where(weights_N > 0, left * weights_N, 0.0).sum())
        return error if math.isfinite(error) else math.inf

    def of_projection(self, fit: Fit) -> Fit:
        """Return the fit of X as the fit of W - W0."""
        change, dual, bias = fit.change_DF, fit.dual_ND, fit.bias_D
        return replace(
            fit,
            change_DF=None if change is None else self.divided(change.mT).mT,
            dual_ND=None if dual is None else self.divided(dual),
            bias_D=None if bias is None else self.divided(bias),
        )

    def divided(self, x: Tensor) -> Tensor:
        """Return x / g, and 0 where g is next to 0: [..., D] -> [..., D]."""
        return (x * self._inverse_D).to(x)
