"""Solves that are checked: what float32 can't do is refined, then done in float64, then given up."""

from __future__ import annotations

import pytest
import torch
from regressions import distance, spd

from ffn_fusion.surgery.cholesky import CholeskySolver


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_solves_without_touching_the_grams(dtype: torch.dtype, close: float) -> None:
    a, b = spd(20, 10).to(dtype), spd(20, 10, seed=1).to(dtype)
    ridge, right = torch.linspace(0.1, 1, 20).double(), torch.ones(20, 3).double()
    before = a.clone()
    solution = CholeskySolver([a, b]).solve(ridge, right)
    assert solution is not None
    whole = a.double() + b.double()
    assert distance(solution.x_FD, torch.linalg.solve(whole + ridge.diag(), right)) < close
    assert distance(solution.product_FD, whole @ solution.x_FD) < 1e-14
    assert solution.residual < close
    assert torch.equal(a, before)
    assert torch.equal(b, spd(20, 10, seed=1).to(dtype))


def test_refines_what_float32_leaves() -> None:
    a, right = spd(40, 1e5).float(), spd(40, 10, seed=2)[:, :5]
    none = torch.zeros(40, dtype=torch.float64)
    rough = torch.cholesky_solve(right.float(), torch.linalg.cholesky(a)).double()
    first = float((right - a.double() @ rough).norm() / right.norm())
    solution = CholeskySolver([a], tolerance=first / 10).solve(none, right)
    assert solution is not None
    assert solution.residual < first / 10


def test_goes_on_in_float64_and_stays_there() -> None:
    a, right = spd(40, 1e9), torch.ones(40, 2).double()
    single = a.float()
    single.diagonal().add_(1e-6)  # of the kind that a ridge repairs: positive, as float64 sees it
    solver = CholeskySolver([single], tolerance=1e-9)
    for ridge in (1e-6, 1e-7):
        ridge_F = torch.full((40,), ridge, dtype=torch.float64)
        solution = solver.solve(ridge_F, right)
        assert solution is not None
        assert solution.residual < 1e-9
        assert distance(solution.x_FD, torch.linalg.solve(single.double() + ridge_F.diag(), right)) < 1e-6


@pytest.mark.parametrize("broken", [-1.0, float("nan"), float("inf")])
def test_gives_up(broken: float) -> None:
    a = torch.eye(4)
    a[2, 2] = broken
    assert CholeskySolver([a]).solve(torch.zeros(4).double(), torch.ones(4, 1).double()) is None


def test_nothing_to_reach_is_reached_with_nothing() -> None:
    solution = CholeskySolver([torch.eye(4)]).solve(torch.zeros(4).double(), torch.zeros(4, 2).double())
    assert solution is not None
    assert not solution.x_FD.any()
    assert solution.residual == 0
