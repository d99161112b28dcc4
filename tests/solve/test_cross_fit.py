"""The dual against the primal, and the choice of lambda."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ffn_fusion.solve.cross_fit import RIDGES, CrossFit, Fold, cross_fit
from ffn_fusion.solve.normal_equations import NormalEquations
from ffn_fusion.solve.primal import ridge_vector

D = 5


def problem(anchors: tuple[int, int], width: int, noise: float, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(H, R, w) of two folds: R is linear in H, and noise."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(width, D, generator=generator, dtype=torch.float64)
    found = []
    for count in anchors:
        h = torch.randn(count, width, generator=generator, dtype=torch.float64)
        r = (1 - noise) * h @ change + noise * torch.randn(count, D, generator=generator, dtype=torch.float64)
        found.append((h, r, torch.rand(count, generator=generator, dtype=torch.float64) + 0.1))
    return found


def folds_of(problem: list[tuple[Tensor, Tensor, Tensor]], dtype: torch.dtype = torch.float64) -> tuple[Fold, Fold]:
    (h0, r0, w0), (h1, r1, w1) = [tuple(x.to(dtype) for x in fold) for fold in problem]
    return Fold(h0 @ h0.mT, h0 @ h1.mT, r0, w0), Fold(h1 @ h1.mT, h1 @ h0.mT, r1, w1)


def primal(h: Tensor, r: Tensor, w: Tensor, ridge: float) -> Tensor:
    """dW^T [F, D], by the normal equations."""
    sums = NormalEquations(h.shape[1], D, dtype=torch.float64)
    sums.add(h, r, w)
    return torch.linalg.solve(sums.gram + ridge_vector(ridge, sums.diagonal, False).diag(), sums.cross)


@given(
    anchors=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    width=st.integers(1, 40),
    noise=st.floats(0, 1),
    ridge=st.sampled_from([10.0, 0.3, 0.001]),
    seed=st.integers(0, 99),
)
def test_the_dual_is_the_primal(anchors: tuple[int, int], width: int, noise: float, ridge: float, seed: int) -> None:
    made = problem(anchors, width, noise, seed)
    fit = cross_fit(folds_of(made), width, [ridge])
    left = sum(
        float((w * (r - h @ primal(*other, ridge)).square().sum(1)).sum())
        for (h, r, w), other in zip(made, reversed(made), strict=True)
    )
    whole = sum(float((w * r.square().sum(1)).sum()) for _, r, w in made)
    assert fit.error == pytest.approx(min(left / whole, 1), rel=1e-6)
    if fit.dual is None:
        assert left >= whole * (1 - 1e-9)
        return
    h = torch.randn(7, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for fold, dual in zip(made, fit.dual, strict=True):
        torch.testing.assert_close(h @ fold[0].mT @ dual, h @ primal(*fold, ridge), rtol=1e-6, atol=1e-8)


@given(
    anchors=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    width=st.integers(1, 40),
    noise=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_never_worse_than_the_old_weights(anchors: tuple[int, int], width: int, noise: float, seed: int) -> None:
    found = cross_fit(folds_of(problem(anchors, width, noise, seed), torch.float32), width)
    assert found.error <= 1
    assert (found.ridge is None) == (found.dual is None) == (found.error == 1)


def test_the_best_lambda_is_taken() -> None:
    """The error falls and rises once along the path; whichever side it's on, the walk finds it."""
    for noise in (0.0, 0.3, 0.6, 0.8):
        folds = folds_of(problem((40, 30), 60, noise, 3))
        alone = {ridge: cross_fit(folds, 60, [ridge]).error for ridge in RIDGES}
        assert cross_fit(folds, 60).error == min(alone.values()), noise


def test_noise_is_left_alone() -> None:
    folds = folds_of(problem((40, 40), 4, 1.0, 0))
    assert cross_fit(folds, 4, [0.001]) == CrossFit()


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_nothing_to_repair_or_not_finite(bad: float) -> None:
    made = [(h, r * bad, w) for h, r, w in problem((4, 4), 3, 0.5, 0)]
    assert cross_fit(folds_of(made), 3) == CrossFit()


def test_tokens_that_weigh_nothing_change_nothing() -> None:
    made = problem((6, 5), 4, 0.2, 0)
    more = [(torch.cat([h, h]), torch.cat([r, 1e3 * r]), torch.cat([w, torch.zeros_like(w)])) for h, r, w in made]
    a, b = (cross_fit(folds_of(problem), 4) for problem in (made, more))
    assert a.ridge == b.ridge
    assert a.error == pytest.approx(b.error)
