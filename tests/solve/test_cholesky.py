"""Solves that are checked: what float32 can't do is refined, then done in float64, then given up."""

from __future__ import annotations

import pytest
import torch
from regressions import distance, spd

from ffn_fusion.solve.cholesky import CholeskySolver


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_solves_without_touching_the_grams(dtype: torch.dtype, close: float) -> None:
    a, b = spd(20, 10).to(dtype), spd(20, 10, seed=1).to(dtype)
    ridge, right = torch.linspace(0.1, 1, 20).double(), torch.ones(20, 3).double()
    before = a.clone()
    seen: list[torch.Tensor] = []

    def judge(columns: slice, x: torch.Tensor, product: torch.Tensor) -> tuple[float]:
        assert (columns.start, columns.stop) == (0, 3)
        seen.extend((x, product))
        return (float(x.sum()),)

    solution = CholeskySolver([a, b]).solve(ridge, right, judge)
    assert solution is not None
    whole = a.double() + b.double()
    assert distance(solution.x_FD, torch.linalg.solve(whole + ridge.diag(), right)) < close
    assert solution.x_FD.dtype == dtype
    x, product = seen
    assert distance(product, whole @ x) < 1e-14
    assert solution.judged == (float(x.sum()),)
    assert solution.residual < close
    assert torch.equal(a, before)
    assert torch.equal(b, spd(20, 10, seed=1).to(dtype))


def test_groups_of_columns_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    a, right = spd(20, 10), torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).double()
    ridge = torch.full((20,), 0.1, dtype=torch.float64)

    def judge(columns: slice, x: torch.Tensor, product: torch.Tensor) -> tuple[float, float]:
        return float(x.sum()), float(right[:, columns].sum())

    whole = CholeskySolver([a]).solve(ridge, right, judge)
    monkeypatch.setattr("ffn_fusion.solve.cholesky._COLUMNS", 3)
    parts = CholeskySolver([a]).solve(ridge, right, judge)
    assert whole is not None
    assert parts is not None
    assert distance(parts.x_FD, whole.x_FD) < 1e-14
    assert parts.judged == pytest.approx(whole.judged)


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
