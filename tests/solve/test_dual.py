"""The dual against the primal: one solution, whatever the shape, with and without a bias."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regressions import Problem, distance, numpy_ridge, problem
from torch import Tensor

from ffn_fusion.solve.choice import Fit
from ffn_fusion.solve.dual import dual_bytes, solve_dual
from ffn_fusion.solve.primal import primal_bytes, solve_primal

RIDGES = (1.0, 0.1, 0.01, 0.001)


def dual(p: Problem, fitted: int, ridges: tuple[float, ...], dtype: torch.dtype = torch.float64, **how: bool) -> Fit:
    h = p.h.to(dtype)
    return solve_dual(h @ h.mT, p.r.to(dtype), p.w.to(dtype), h.shape[1], fitted, ridges, **how)


def change_of(fit: Fit, p: Problem) -> Tensor:
    assert fit.dual_ND is not None
    return fit.dual_ND.double().mT @ p.h.nan_to_num(0.0, 0.0, 0.0)


@given(
    n=st.integers(1, 30),
    m=st.integers(1, 20),
    f=st.integers(1, 40),
    d=st.integers(1, 4),
    bias=st.booleans(),
    ridge=st.sampled_from(RIDGES),
    seed=st.integers(0, 99),
)
def test_the_same_fit_as_the_primal(n: int, m: int, f: int, d: int, bias: bool, ridge: float, seed: int) -> None:
    p = problem(n + m, f, d, seed, zeros=0.2, shift=0.5)
    found = dual(p, n, (ridge,), bias=bias)
    expected = solve_primal(p.part(0, n).sums(bias=bias), (ridge,), p.part(n).sums(bias=bias))
    if expected.path and expected.path[0].held_out_error == pytest.approx(1.0, abs=1e-9):
        return  # neither better nor worse than the old weights: rounding decides
    assert (found.reason, found.ridge, found.refitted) == (expected.reason, expected.ridge, expected.refitted)
    for a, b in zip(found.path, expected.path, strict=True):
        assert a.fit_error == pytest.approx(b.fit_error, rel=1e-6, abs=1e-9)
        assert a.held_out_error == pytest.approx(b.held_out_error, rel=1e-6, abs=1e-9)
    if expected.change_DF is None:
        assert found.dual_ND is None
        return
    assert distance(change_of(found, p), expected.change_DF) < 1e-6
    assert (found.bias_D is None) == (expected.bias_D is None)
    if found.bias_D is not None and expected.bias_D is not None:
        assert distance(found.bias_D, expected.bias_D) < 1e-6


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_the_same_lambda_is_chosen(noise: float) -> None:
    p = problem(60, 90, 4, noise=noise)
    found, expected = dual(p, 45, RIDGES), solve_primal(p.part(0, 45).sums(), RIDGES, p.part(45).sums())
    assert (found.ridge, len(found.path)) == (expected.ridge, len(expected.path))


def test_numpy_agrees_after_the_refit() -> None:
    p = problem(20, 60, 3, shift=2.0)
    found = dual(p, 15, (0.01,), bias=True)
    assert found.bias_D is not None
    expected = numpy_ridge(p, 0.01, bias=True)
    assert distance(torch.cat([change_of(found, p).mT, found.bias_D[None]]), expected) < 1e-9


@pytest.mark.parametrize("bias", [False, True])
def test_output_channels_in_groups_are_the_same(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(24, 40, 5, shift=1.0)
    whole = dual(p, 18, RIDGES, bias=bias)
    monkeypatch.setattr("ffn_fusion.solve.cholesky._COLUMNS", 2)
    groups = dual(p, 18, RIDGES, bias=bias)
    assert groups.ridge == whole.ridge
    assert groups.held_out_error == pytest.approx(whole.held_out_error, rel=1e-12)
    assert distance(change_of(groups, p), change_of(whole, p)) < 1e-12
    if bias:
        assert groups.bias_D is not None
        assert whole.bias_D is not None
        assert distance(groups.bias_D, whole.bias_D) < 1e-12


def test_float32_is_as_good_where_it_matters() -> None:
    p = problem(300, 900, 5)
    wide, narrow = (dual(p, 240, (1e-4, 1e-2), dtype) for dtype in (torch.float64, torch.float32))
    assert narrow.ridge == wide.ridge
    assert narrow.dual_ND is not None
    assert narrow.dual_ND.dtype == torch.float32
    assert narrow.held_out_error == pytest.approx(wide.held_out_error, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["activations", "residuals", "weights"])
def test_tokens_that_are_not_finite_weigh_nothing(bad: float, where: str) -> None:
    p = problem(24, 9, 2)
    h, r, w = p.h.clone(), p.r.clone(), p.w.clone()
    {"activations": h[:, 1], "residuals": r[:, 1], "weights": w}[where][[3, 21]] = bad
    found = dual(Problem(h, r, w), 16, RIDGES)
    kept = torch.tensor([k for k in range(24) if k not in (3, 21)])
    clean = Problem(p.h[kept], p.r[kept], p.w[kept])
    expected = dual(clean, 15, RIDGES)
    assert found.ridge == expected.ridge
    assert found.held_out_error == pytest.approx(expected.held_out_error)
    assert distance(change_of(found, Problem(h, r, w)), change_of(expected, clean)) < 1e-9


def test_reasons_for_nothing_to_solve() -> None:
    p = problem(20, 3, 2)
    nothing = Problem(p.h, p.r, p.w * 0)
    assert dual(nothing, 10, (0.1,)).reason == "no tokens"
    assert dual(p, 0, (0.1,)).reason == "no tokens"
    assert dual(p, 20, (0.1,)).reason == "no held-out tokens"
    lost = Problem(p.h * float("nan"), p.r, p.w)
    assert dual(lost, 10, (0.1,)).reason == "not finite"
    assert dual(Problem(p.h[:, :0], p.r, p.w), 10, (0.1,)).reason == "no channels"
    assert dual(Problem(p.h, p.r * 0, p.w), 10, (0.1,)).reason == "no gain on held-out tokens"
    assert dual(problem(20, 3, 2), 10, (0.0,)).reason == "singular"  # more tokens than channels, and no ridge
    with pytest.raises(ValueError, match="ridges"):
        dual(p, 10, ())


def test_memory_is_that_of_the_kernel_where_the_layer_is_wide() -> None:
    """24,576 tokens of a fused FFN of the 405B model."""
    tokens, width, hidden = 24_576, 159_744, 16_384
    assert 2 * 4 * tokens**2 < dual_bytes(tokens, width, hidden) < primal_bytes(width, hidden) / 5
    assert primal_bytes(50_000, 4096) < dual_bytes(200_000, 50_000, 4096) / 5
