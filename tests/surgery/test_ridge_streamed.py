"""Tokens that pass by give what their sums give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regressions import Problem, distance, problem
from torch import Tensor

from ffn_fusion.surgery.ridge import solve_path
from ffn_fusion.surgery.ridge_streamed import Chunks, solve_streamed, stream_operator


def chunks(p: Problem, size: int = 7, dtype: torch.dtype = torch.float64) -> Chunks:
    def stream() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(p.h), size):
            part = p.part(start, start + size)
            yield part.h.to(dtype), part.r.to(dtype), part.w

    return stream


@pytest.mark.parametrize("vector", [False, True])
def test_operator_is_the_matrix(vector: bool) -> None:
    p, v = problem(30, 6, 2, zeros=0.2), problem(6, 3, 1).h
    ridge = torch.arange(6).double() if vector else 0.5
    apply = stream_operator(lambda: ((h, w) for h, _, w in chunks(p)()), ridge)
    ridge_F = torch.as_tensor(ridge, dtype=torch.float64).expand(6)
    assert distance(apply(v), p.sums().gram @ v + ridge_F[:, None] * v) < 1e-13
    plain = stream_operator(lambda: ((h, None) for h, _, _ in chunks(p)()), 0.0)
    assert distance(plain(v), p.h.mT @ (p.h @ v)) < 1e-13


@given(
    n=st.integers(2, 40),
    f=st.integers(1, 12),
    d=st.integers(1, 4),
    bias=st.booleans(),
    refit=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sums_agree(n: int, f: int, d: int, bias: bool, refit: bool, seed: int) -> None:
    p = problem(2 * n, f, d, seed, zeros=0.2, shift=0.5)
    seen, unseen = p.part(0, n), p.part(n)
    ridges = [1.0, 0.1, 0.01]
    direct = solve_path(seen.sums(bias=bias), ridges, unseen.sums(bias=bias), refit=refit)
    streamed = solve_streamed(
        chunks(seen), chunks(unseen), ridges, bias=bias, refit=refit, tolerance=1e-10, dtype=torch.float64
    )
    assert len(streamed.path) == len(direct.path) or streamed.path[-1].held_out_error > streamed.path[-2].held_out_error  # type: ignore[operator]
    for a, b in zip(streamed.path, direct.path, strict=False):
        assert a.ridge == b.ridge
        assert a.fit_error == pytest.approx(b.fit_error, rel=1e-6, abs=1e-9)
        assert a.held_out_error == pytest.approx(b.held_out_error, rel=1e-6, abs=1e-9)
    if streamed.ridge == direct.ridge:  # early stopping may miss a second, lower minimum
        assert streamed.reason == direct.reason
        if streamed.change_DF is not None and direct.change_DF is not None:
            assert distance(streamed.change_DF, direct.change_DF) < 1e-6
            assert streamed.refitted == refit
        if streamed.bias_D is not None and direct.bias_D is not None:
            torch.testing.assert_close(streamed.bias_D, direct.bias_D, rtol=1e-6, atol=1e-6)
    assert streamed.held_out_error <= 1


def test_float32_chunks() -> None:
    p = problem(200, 12, 3)
    seen, unseen = p.part(0, 150), p.part(150)
    direct = solve_path(seen.sums(), [0.01], unseen.sums())
    streamed = solve_streamed(chunks(seen, 64, torch.float32), chunks(unseen, 64, torch.float32), [0.01])
    assert streamed.change_DF is not None
    assert direct.change_DF is not None
    assert streamed.change_DF.dtype == torch.float32
    assert distance(streamed.change_DF, direct.change_DF) < 1e-4


def test_stops_where_the_held_out_error_rises() -> None:
    p = problem(40, 20, 2, noise=20.0)
    streamed = solve_streamed(chunks(p.part(0, 25)), chunks(p.part(25)), [1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6])
    errors = [point.held_out_error or 0 for point in streamed.path]
    assert len(errors) < 6
    assert errors[-1] > errors[-2]
    assert errors[:-1] == sorted(errors[:-1], reverse=True)


def test_a_later_lambda_begins_at_the_last_ones_solution() -> None:
    p = problem(200, 30, 1)
    passes = 0

    def counted() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        nonlocal passes
        passes += 1
        yield from chunks(p)()

    solve_streamed(counted, chunks(p), [0.01], refit=False)
    cold, passes = passes, 0
    solve_streamed(counted, chunks(p), [0.01 * 1.001, 0.01], refit=False)
    assert passes < 2 * cold - 2


def test_reasons_for_nothing_to_solve() -> None:
    p = problem(10, 3, 2)
    good, lost = chunks(p), chunks(Problem(p.h * float("nan"), p.r, p.w))
    assert solve_streamed(lambda: iter(()), good, [0.1]).reason == "no tokens"
    assert solve_streamed(good, lambda: iter(()), [0.1]).reason == "no held-out tokens"
    assert solve_streamed(lost, good, [0.1]).reason == "not finite"
    assert solve_streamed(good, lost, [0.1]).reason == "not finite"
    none = chunks(Problem(p.h[:, :0], p.r, p.w))
    assert solve_streamed(none, none, [0.1]).reason == "no channels"
    noise = Problem(p.h, p.r * 0, p.w)
    assert solve_streamed(chunks(noise), chunks(noise), [0.1]).reason == "no gain on held-out tokens"


def test_some_tokens_that_are_not_finite_are_left_out() -> None:
    p = problem(40, 5, 2)
    h, r = p.h.clone(), p.r.clone()
    h[3, 1], r[30, 0] = float("nan"), float("inf")
    broken = Problem(h, r, p.w)
    direct = solve_path(broken.sums(), [0.1], broken.sums())
    streamed = solve_streamed(chunks(broken), chunks(broken), [0.1], tolerance=1e-10, dtype=torch.float64)
    assert streamed.change_DF is not None
    assert direct.change_DF is not None
    assert distance(streamed.change_DF, direct.change_DF) < 1e-8


@given(columns=st.integers(1, 6), bias=st.booleans(), seed=st.integers(0, 99))
def test_groups_of_columns_are_the_same_regressions(columns: int, bias: bool, seed: int) -> None:
    """At one lambda: each output channel has an equation of its own."""
    p = problem(60, 5, 6, seed, shift=0.5)
    seen, unseen = p.part(0, 40), p.part(40)
    how = {"bias": bias, "tolerance": 1e-10, "dtype": torch.float64}
    whole = solve_streamed(chunks(seen), chunks(unseen), [0.1], **how)  # type: ignore[arg-type]
    groups = solve_streamed(chunks(seen), chunks(unseen), [0.1], columns=columns, **how)  # type: ignore[arg-type]
    if whole.change_DF is None or groups.change_DF is None:
        return  # the channels that lambda is judged on gain or don't
    kept = groups.change_DF.abs().sum(1) == 0  # a group that doesn't gain on held-out tokens keeps W0
    assert distance(groups.change_DF[~kept].double(), whole.change_DF[~kept]) < 1e-5
    if bias:
        assert groups.bias_D is not None
        assert whole.bias_D is not None
        assert torch.allclose(groups.bias_D[~kept].double(), whole.bias_D[~kept].double(), rtol=1e-4, atol=1e-5)
