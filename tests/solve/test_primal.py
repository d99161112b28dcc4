"""Ridge regressions against numpy's least squares, and what becomes of data that no regression helps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regressions import Problem, distance, numpy_ridge, problem
from torch import Tensor

from ffn_fusion.solve.choice import Fit
from ffn_fusion.solve.normal_equations import NormalEquations
from ffn_fusion.solve.primal import primal_bytes, solve_primal
from ffn_fusion.solve.token_weights import Weighting, token_weights

SHAPES = [(5, 9, 2), (9, 9, 3), (60, 9, 1), (60, 9, 4), (40, 1, 2), (1, 3, 1)]


def with_bias(fit: Fit) -> Tensor:
    """dW^T with the bias, if there is one, as last row."""
    assert fit.change_DF is not None
    return fit.change_DF.mT if fit.bias_D is None else torch.cat([fit.change_DF.mT, fit.bias_D[None]])


@pytest.mark.parametrize(("n", "f", "d"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_numpy_agrees(n: int, f: int, d: int, bias: bool, ridge: float) -> None:
    p = problem(n, f, d, shift=2.0)
    fit = solve_primal(p.sums(bias=bias), [ridge], p.sums(bias=bias), refit=False)
    expected = numpy_ridge(p, ridge, bias=bias)
    assert fit.change_DF is not None
    assert (fit.bias_D is not None) == bias
    assert with_bias(fit).shape == (f + bias, d)
    assert distance(with_bias(fit), expected) < 1e-9


@pytest.mark.parametrize("bias", [False, True])
def test_without_a_ridge_it_is_least_squares(bias: bool) -> None:
    p = problem(80, 9, 3, zeros=0.2, shift=1.0)
    fit = solve_primal(p.sums(bias=bias), [0.0], p.sums(bias=bias), refit=False)
    assert fit.change_DF is not None
    assert distance(fit.change_DF.mT, numpy_ridge(p, 0.0, bias=bias)[:9]) < 1e-9


@given(
    n=st.integers(1, 24),
    f=st.integers(1, 12),
    d=st.integers(1, 4),
    bias=st.booleans(),
    ridge=st.sampled_from([1e-3, 0.1, 10.0]),
    seed=st.integers(0, 99),
)
def test_any_shape(n: int, f: int, d: int, bias: bool, ridge: float, seed: int) -> None:
    p = problem(n, f, d, seed, zeros=0.3)
    fit = solve_primal(p.sums(bias=bias), [ridge], p.sums(bias=bias), refit=False)
    if not bool((p.w > 0).any()):
        assert fit.reason == "no tokens"
        return
    assert fit.change_DF is not None
    assert distance(with_bias(fit), numpy_ridge(p, ridge, bias=bias)) < 1e-8
    assert fit.path[0].fit_error == pytest.approx(
        p.error(fit.change_DF, fit.bias_D) / p.sums().energy, rel=1e-6, abs=1e-9
    )


@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    f=st.integers(1, 12),
    noise=st.sampled_from([0.0, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    refit=st.booleans(),
    seed=st.integers(0, 999),
)
def test_never_worse_on_held_out_tokens(
    n: int, m: int, f: int, noise: float, dtype: torch.dtype, refit: bool, seed: int
) -> None:
    whole = problem(n + m, f, 2, seed, noise=noise)
    seen, unseen = whole.part(0, n), whole.part(n)
    fit = solve_primal(seen.sums(dtype=dtype), [1e-6, 1e-3, 1.0, 100.0], unseen.sums(dtype=dtype), refit=refit)
    assert fit.held_out_error <= 1
    assert (fit.change_DF is None) == (fit.reason is not None) == (fit.ridge is None)
    if fit.change_DF is None:
        assert fit.held_out_error == 1
        assert all(point.held_out_error is None or point.held_out_error >= 1 for point in fit.path)
    elif not refit:
        energy = float((unseen.w * unseen.r.square().sum(1)).sum())
        assert unseen.error(fit.change_DF) <= energy * (1 + 1e-5)
        assert fit.held_out_error == pytest.approx(unseen.error(fit.change_DF) / energy, rel=1e-3, abs=1e-5)
        assert fit.held_out_error == min(point.held_out_error or 0 for point in fit.path)


def test_path_is_from_large_to_small() -> None:
    p = problem(60, 9, 2)
    fit = solve_primal(p.part(0, 40).sums(), [1e-4, 1.0, 1e-2, 1.0], p.part(40).sums())
    assert [point.ridge for point in fit.path] == [1.0, 1e-2, 1e-4]
    errors = [point.fit_error for point in fit.path]
    assert errors == sorted(errors, reverse=True, key=lambda error: error or 0)
    assert all(point.residual is not None and point.residual < 1e-9 for point in fit.path)


def test_refit_is_the_fit_of_all_tokens() -> None:
    p = problem(60, 9, 2)
    fit = solve_primal(p.part(0, 40).sums(), [0.01], p.part(40).sums())
    assert fit.refitted
    assert fit.change_DF is not None
    assert distance(fit.change_DF.mT, numpy_ridge(p, 0.01)) < 1e-9


def test_ridge_has_no_unit() -> None:
    p = problem(60, 9, 2)
    large = Problem(p.h * 1000, p.r, p.w * 7)
    a, b = (solve_primal(q.sums(), [0.1], q.sums()).change_DF for q in (p, large))
    assert a is not None
    assert b is not None
    assert distance(b * 1000, a) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_channels_share_with_a_ridge(dtype: torch.dtype) -> None:
    p = problem(60, 4, 2)
    twice = Problem(torch.cat([p.h, p.h], 1), p.r, p.w)
    fit = solve_primal(twice.sums(dtype=dtype), [0.01], twice.sums(dtype=dtype))
    assert fit.change_DF is not None
    assert distance(fit.change_DF[:, :4], fit.change_DF[:, 4:]) < (1e-4 if dtype == torch.float32 else 1e-9)


def test_without_a_ridge_a_dead_channel_is_singular() -> None:
    sums = NormalEquations(2, 1)
    sums.add(torch.tensor([[1.0, 0.0]] * 8), torch.ones(8, 1))
    fit = solve_primal(sums, [0.0], sums)
    assert fit.reason == "singular"
    assert fit.path[0].held_out_error is None
    with_ridge = solve_primal(sums, [0.0, 0.1], sums)
    assert with_ridge.ridge == 0.1


def test_noise_is_left_alone() -> None:
    p = problem(40, 20, 2, noise=0.0)
    noise = Problem(p.h, problem(40, 20, 2, seed=5).h[:, :2], p.w)
    fit = solve_primal(noise.part(0, 21).sums(), [1e-6], noise.part(21).sums())
    assert fit.reason == "no gain on held-out tokens"
    assert fit.change_DF is None
    assert fit.held_out_error == 1


def test_what_is_already_reached_is_left_alone() -> None:
    p = problem(40, 5, 2)
    reached = Problem(p.h, p.r * 0, p.w)
    assert solve_primal(reached.sums(), [0.1], reached.sums()).reason == "no gain on held-out tokens"
    assert solve_primal(p.sums(), [0.1], reached.sums()).reason == "no gain on held-out tokens"


def test_dead_channels_stay() -> None:
    p = problem(40, 5, 2)
    h = p.h.clone()
    h[:, 2] = 0
    fit = solve_primal(Problem(h, p.r, p.w).sums(), [0.1], Problem(h, p.r, p.w).sums())
    assert fit.change_DF is not None
    assert not fit.change_DF[:, 2].any()


def test_all_channels_dead_leave_the_bias() -> None:
    p = problem(40, 5, 2, shift=3.0)
    dead = Problem(p.h * 0, p.r, p.w)
    fit = solve_primal(dead.sums(bias=True), [0.1], dead.sums(bias=True))
    assert fit.change_DF is not None
    assert not fit.change_DF.any()
    assert fit.bias_D is not None
    assert distance(fit.bias_D, (p.w[:, None] * p.r).sum(0) / p.w.sum()) < 1e-12


def test_reasons_for_nothing_to_solve() -> None:
    p = problem(10, 3, 2)
    empty, good = NormalEquations(3, 2, dtype=torch.float64), p.sums()
    lost = Problem(p.h * float("nan"), p.r, p.w).sums()
    assert solve_primal(empty, [0.1], good).reason == "no tokens"
    assert solve_primal(good, [0.1], empty).reason == "no held-out tokens"
    assert solve_primal(lost, [0.1], good).reason == "not finite"
    assert solve_primal(good, [0.1], lost).reason == "not finite"
    none = NormalEquations(0, 2)
    none.add(torch.zeros(5, 0), torch.ones(5, 2))
    assert solve_primal(none, [0.1], none).reason == "no channels"


def test_sums_that_overflow_are_not_finite() -> None:
    sums = NormalEquations(2, 1)
    sums.add(torch.full((8, 2), 1e19), torch.ones(8, 1))
    assert solve_primal(sums, [0.1], sums).reason == "not finite"


def test_some_tokens_that_are_not_finite_are_left_out() -> None:
    p = problem(40, 5, 2)
    h = p.h.clone()
    h[3, 1] = float("nan")
    sums = Problem(h, p.r, p.w).sums()
    fit = solve_primal(sums, [0.1], sums)
    kept = torch.arange(40) != 3
    assert fit.change_DF is not None
    assert distance(fit.change_DF.mT, numpy_ridge(Problem(p.h[kept], p.r[kept], p.w[kept]), 0.1)) < 1e-9


@pytest.mark.parametrize("ridges", [[], [-1.0], [float("nan")], [0.1, float("inf")]])
def test_ridges_that_are_none_are_refused(ridges: list[float]) -> None:
    sums = problem(10, 3, 2).sums()
    with pytest.raises(ValueError, match="ridges"):
        solve_primal(sums, ridges, sums)


def test_float32_is_as_good_where_it_matters() -> None:
    """Channels over two decades and a small ridge: the error on held-out tokens is that of float64."""
    p = problem(3000, 60, 5)
    wide, narrow = (
        solve_primal(p.part(0, 2000).sums(dtype=dtype), [1e-4, 1e-2], p.part(2000).sums(dtype=dtype), refit=False)
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.ridge == wide.ridge
    assert narrow.change_DF is not None
    assert narrow.change_DF.dtype == torch.float32
    assert p.part(2000).error(narrow.change_DF) / p.part(2000).sums().energy == pytest.approx(
        wide.held_out_error, rel=1e-4
    )


def test_same_twice() -> None:
    p = problem(60, 9, 2)
    a, b = (
        solve_primal(p.part(0, 40).sums(dtype=torch.float32), [0.1, 0.01], p.part(40).sums(dtype=torch.float32))
        for _ in range(2)
    )
    assert a.change_DF is not None
    assert b.change_DF is not None
    assert torch.equal(a.change_DF, b.change_DF)
    assert a.path == b.path


def test_memory_is_three_matrices() -> None:
    assert 3 * 4 * 10_000**2 < primal_bytes(10_000, 576) < 5 * 4 * 10_000**2


@pytest.mark.parametrize(("kind", "repaired"), [("none", False), ("inverse-energy", True), ("capped", True)])
def test_massive_tokens_own_the_fit_unless_weighted(kind: Weighting, repaired: bool) -> None:
    """1 % of the tokens have states 300 times as large, and another map leads to those."""
    p = problem(2000, 8, 3, noise=0.1)
    massive = torch.arange(2000) % 100 == 0
    y = p.r.clone()
    y[massive] = 300 * p.h[massive] @ problem(8, 3, 1, seed=7).h
    sums = NormalEquations(8, 3, dtype=torch.float64)
    sums.add(p.h, y, token_weights(y, kind))
    fit = solve_primal(sums, [1e-6], sums)
    assert fit.change_DF is not None
    ordinary = Problem(p.h[~massive], y[~massive], torch.ones(int((~massive).sum()), dtype=torch.float64))
    left = ordinary.error(fit.change_DF) / ordinary.error(fit.change_DF * 0)
    assert left < 0.1 if repaired else left > 1
