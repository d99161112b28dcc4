"""Block conjugate gradients against direct solves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regressions import distance, problem, spd
from torch import Tensor

from ffn_fusion.surgery.conjugate_gradients import conjugate_gradients


@given(f=st.integers(1, 30), d=st.integers(1, 40), seed=st.integers(0, 99), warm=st.booleans())
def test_direct_solve_agrees(f: int, d: int, seed: int, warm: bool) -> None:
    a, b = spd(f, 1e3, seed), problem(f, d, 1, seed).h
    start = problem(f, d, 1, seed + 1).h if warm else None
    solved = conjugate_gradients(lambda v: a @ v, b, tolerance=1e-10, start_FD=start)
    assert solved.converged
    assert distance(solved.x_FD, torch.linalg.solve(a, b)) < 1e-6
    assert distance(b - solved.left_FD, a @ solved.x_FD) < 1e-12


@pytest.mark.parametrize("d", [1, 6, 16, 64])
def test_a_block_needs_as_many_products_as_it_has_shares_of_the_space(d: int) -> None:
    a, b = spd(48, 1e3), problem(48, d, 1).h
    solved = conjugate_gradients(lambda v: a @ v, b, tolerance=1e-9)
    assert solved.converged
    exact = -(-48 // d)
    assert exact < solved.steps <= exact + 4 if d > 1 else solved.steps < 3 * exact  # rounding, and a check at the end


def test_columns_that_depend_on_one_another() -> None:
    a, b = spd(30, 1e3), problem(30, 3, 1).h
    b = torch.cat([b, b, b[:, :1] * 0, b[:, :1] + b[:, 1:2]], 1)
    solved = conjugate_gradients(lambda v: a @ v, b, tolerance=1e-9)
    assert solved.converged
    assert distance(solved.x_FD, torch.linalg.solve(a, b)) < 1e-6


def test_preconditioner_takes_scales_away() -> None:
    scale = torch.logspace(0, 4, 60, dtype=torch.float64)
    a, b = scale[:, None] * spd(60, 10) * scale, problem(60, 1, 1).h
    plain = conjugate_gradients(lambda v: a @ v, b, max_steps=40)
    helped = conjugate_gradients(lambda v: a @ v, b, max_steps=40, preconditioner_F=a.diagonal())
    assert not plain.converged
    assert helped.converged
    assert distance(helped.x_FD, torch.linalg.solve(a, b)) < 1e-4


def test_a_start_at_the_solution_is_one_product() -> None:
    a, b = spd(20, 10), problem(20, 2, 1).h
    solved = conjugate_gradients(lambda v: a @ v, b, start_FD=torch.linalg.solve(a, b))
    assert (solved.steps, solved.converged) == (1, True)


def test_nothing_on_the_right_is_no_product() -> None:
    solved = conjugate_gradients(lambda v: v, torch.zeros(5, 2))
    assert (solved.steps, solved.converged) == (0, True)
    assert not solved.x_FD.any()


def test_stops_at_the_limit() -> None:
    a, b, calls = spd(60, 1e6), problem(60, 1, 1).h, 0

    def apply(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return a @ v

    solved = conjugate_gradients(apply, b, tolerance=1e-12, max_steps=7)
    assert not solved.converged
    assert calls == solved.steps <= 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_gets_as_far_as_it_can(dtype: torch.dtype) -> None:
    a, b = spd(60, 1e4).to(dtype), problem(60, 4, 1).h.to(dtype)
    solved = conjugate_gradients(lambda v: a @ v, b, tolerance=1e-14, max_steps=500)
    assert solved.steps < 500
    assert float(solved.residual_D.max()) < (1e-3 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -1.0])
def test_what_cannot_be_solved_ends(broken: float) -> None:
    a = torch.eye(5, dtype=torch.float64)
    a[2, 2] = broken
    assert not conjugate_gradients(lambda v: a @ v, torch.ones(5, 1).double()).converged
    right = torch.ones(5, 2).double()
    right[1, 1] = float("nan")
    assert not conjugate_gradients(lambda v: v, right).converged
