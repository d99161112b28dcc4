"""Fitting finds the constants that made the times, stays within bounds, and says what it predicts unseen."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lab.fit import CPU_CONSTANTS, Observation, errors, fit_machine, least_largest, least_squares, predicted

from ffn_fusion.errors import UsageError
from ffn_fusion.families.pattern import pattern_spec
from ffn_fusion.latency.machines import Machine
from ffn_fusion.latency.work import Setting

TRUE = Machine(
    name="cpu",
    memory=1e9,
    bandwidth=1e9,
    flops={"fp32": 1e12},
    memory_efficiency=0.37,
    attention_seconds=4e-5,
    ffn_seconds=1e-5,
    step_seconds=2e-4,
)
START = TRUE.model_copy(
    update={"memory_efficiency": 0.9, "attention_seconds": 0.0, "ffn_seconds": 0.0, "step_seconds": 0.0}
)


def seen(count: int, noise: float = 0.0) -> list[Observation]:
    chance = random.Random(0)
    found = []
    for i in range(count):
        blocks = [(chance.choice([2, None]), chance.choice([64, 128, 700])) for _ in range(chance.randint(4, 12))]
        spec = pattern_spec(blocks, hidden_size=64, heads=8, vocab_size=100)
        blank = Observation(str(i), spec, Setting(weights="fp32", kv="fp32", context=16), 1.0)
        found.append(
            Observation(str(i), spec, blank.setting, predicted(TRUE, blank) * chance.uniform(1 - noise, 1 + noise))
        )
    return found


@pytest.mark.parametrize("goal", ["squares", "largest"])
def test_the_constants_that_made_the_times_are_found(goal: str) -> None:
    found = fit_machine(START, seen(8), goal=goal)  # type: ignore[arg-type]
    for name in CPU_CONSTANTS:
        assert getattr(found.machine, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    assert max(map(abs, found.errors)) < 1e-6
    assert found.left_out is not None
    assert max(map(abs, found.left_out)) < 1e-6
    assert found.machine.fitted == tuple(CPU_CONSTANTS)


def test_what_is_left_out_is_predicted_worse() -> None:
    found = fit_machine(START, seen(8, noise=0.05))
    assert found.left_out is not None
    assert sum(e * e for e in found.left_out) > sum(e * e for e in found.errors) > 0


def test_goals_differ() -> None:
    times = seen(9, noise=0.08)
    squares, largest = (fit_machine(START, times, goal=goal) for goal in ("squares", "largest"))
    assert max(map(abs, largest.errors)) < max(map(abs, squares.errors))
    assert sum(e * e for e in squares.errors) < sum(e * e for e in largest.errors)


def test_bounds_hold() -> None:
    found = fit_machine(START, seen(8), {"memory_efficiency": (0.5, 0.6), "ffn_seconds": (0.0, 1.0)})
    assert found.machine.memory_efficiency == pytest.approx(0.5)
    assert found.machine.attention_seconds == 0
    worse = errors(found.machine.model_copy(update={"memory_efficiency": 0.55}), seen(8))
    assert sum(e * e for e in worse) > sum(e * e for e in found.errors)


@pytest.mark.parametrize("seed", range(40))
def test_no_point_within_the_limits_is_better(seed: int) -> None:
    """Random problems, every fourth with two constants that can't be told apart."""
    random_ = np.random.default_rng(seed)
    rows, wanted = random_.normal(size=(7, 3)) * [1, 1e3, 1e-2], random_.normal(size=7)
    if seed % 4 == 0:
        rows[:, 2] = rows[:, 1]
    limits = [(1.0, 3.0), (0.0, 1e-3), (0.0, 50.0)]
    x = least_squares(rows, wanted, limits)
    assert all(low - 1e-9 <= v <= high + 1e-9 for v, (low, high) in zip(x, limits, strict=True))
    points = random_.uniform(*zip(*limits, strict=True), size=(2000, 3))
    nearby = np.clip(x + random_.normal(size=(2000, 3)) * [1e-3, 1e-6, 1e-1], *zip(*limits, strict=True))
    errors_there = ((np.concatenate([points, nearby]) @ rows.T - wanted) ** 2).sum(1)
    assert ((rows @ x - wanted) ** 2).sum() <= errors_there.min() + 1e-9
    largest = least_largest(rows, wanted, limits)
    assert all(low - 1e-9 <= v <= high + 1e-9 for v, (low, high) in zip(largest, limits, strict=True))
    off = np.abs(np.concatenate([points, nearby, x[None]]) @ rows.T - wanted).max(1)
    assert np.abs(rows @ largest - wanted).max() <= off.min() + 1e-9


def test_too_few_times() -> None:
    with pytest.raises(UsageError, match="4 constants"):
        fit_machine(START, seen(3))
    assert fit_machine(START, seen(4)).left_out is None
