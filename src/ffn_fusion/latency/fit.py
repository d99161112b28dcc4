"""Fitting a machine's constants to measured times, and how well a fit predicts what it hasn't seen. No torch.

A decode step's time is linear in 1 / memory_efficiency and in every constant that is a time, as long as reading and
not arithmetic binds. So the fit is linear least squares on relative errors, solved anew where the maximum in the model
makes it not quite linear, with bounds kept by trying every set of constants that could stand on theirs. "largest" fits
for the least largest error instead, by weighing again what is off most (Lawson's algorithm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.hardware import decode_step, step_seconds
from ffn_fusion.latency.machines import Machine
from ffn_fusion.latency.work import Setting

Array = NDArray[np.float64]
Bounds = Mapping[str, tuple[float, float]]
Goal = Literal["squares", "largest"]
_EFFICIENCY = "memory_efficiency"
CPU_CONSTANTS: Bounds = {
    _EFFICIENCY: (0.02, 1.0),
    "attention_seconds": (0.0, 1.0),
    "ffn_seconds": (0.0, 1.0),
    "step_seconds": (0.0, 1.0),
}
"""Fitted of a machine that decodes were measured on: what an engine reaches of its bandwidth, and its overheads."""


@dataclass(frozen=True)
class Observation:
    """A measured decode step of a model: ``seconds``, one token a sequence."""

    name: str
    spec: ModelSpec
    setting: Setting
    seconds: float


@dataclass(frozen=True)
class Fit:
    """The machine with its fitted constants, and the relative errors of its predictions, observation by observation.

    ``left_out``: each predicted by a machine that was fitted without it; None where too few were left for that.
    """

    machine: Machine
    errors: tuple[float, ...]
    left_out: tuple[float, ...] | None


def predicted(machine: Machine, seen: Observation) -> float:
    """Seconds of the observation's decode step."""
    return step_seconds(machine, seen.spec, seen.setting, decode_step(seen.setting)).total


def errors(machine: Machine, seen: Sequence[Observation]) -> tuple[float, ...]:
    """Predicted / measured - 1."""
    return tuple(predicted(machine, one) / one.seconds - 1 for one in seen)


def fit_machine(
    machine: Machine, seen: Sequence[Observation], free: Bounds = CPU_CONSTANTS, *, goal: Goal = "squares"
) -> Fit:
    """Fit the constants named in ``free``, within their bounds, to measured decode steps.

    Args:
        machine: its other constants are kept. free: constant -> (least, largest).

    Raises:
        UsageError: fewer observations than constants.
    """
    if len(seen) < len(free):
        raise UsageError(f"{len(free)} constants can't be fitted to {len(seen)} times", "measure more models")
    fitted = _fitted(machine, seen, free, goal)
    others = [[*seen[:i], *seen[i + 1 :]] for i in range(len(seen))] if len(seen) > len(free) else []
    left_out = tuple(
        errors(_fitted(machine, rest, free, goal), [one])[0] for one, rest in zip(seen, others, strict=False)
    )
    return Fit(fitted, errors(fitted, seen), left_out or None)


def _fitted(machine: Machine, seen: Sequence[Observation], free: Bounds, goal: Goal) -> Machine:
    for _ in range(6):  # exact after the first while nothing changes sides of a maximum
        rows, rest = _linear(machine, seen, free)
        solve = _least_squares if goal == "squares" else _least_largest
        here, values = _values(machine, free), solve(rows, 1 - rest, _limits(free))
        machine = _with(machine, free, values)
        if np.allclose(here, values, rtol=1e-6, atol=0):
            break
    return machine.model_copy(update={"fitted": tuple(free)})


def _linear(machine: Machine, seen: Sequence[Observation], free: Bounds) -> tuple[Array, Array]:
    """Relative to what was measured: how each observation's time changes with each constant, and what's left of it."""
    measured = np.asarray([one.seconds for one in seen])
    here = _values(machine, free)
    times = np.asarray([predicted(machine, one) for one in seen])
    columns = []
    for i in range(len(here)):
        step = np.zeros_like(here)
        step[i] = 0.01 * here[i] or 1e-6
        moved = np.asarray([predicted(_with(machine, free, here + step), one) for one in seen])
        columns.append((moved - times) / step[i] / measured)
    rows = np.stack(columns, 1)
    return rows, times / measured - rows @ here


def _values(machine: Machine, free: Bounds) -> Array:
    return np.asarray(
        [1 / machine.memory_efficiency if name == _EFFICIENCY else getattr(machine, name) for name in free]
    )


def _with(machine: Machine, free: Bounds, values: Array) -> Machine:
    named = zip(free, values.tolist(), strict=True)
    return machine.model_copy(update={name: 1 / value if name == _EFFICIENCY else value for name, value in named})


def _limits(free: Bounds) -> list[tuple[float, float]]:
    return [(1 / high, 1 / low) if name == _EFFICIENCY else (low, high) for name, (low, high) in free.items()]


def _least_squares(rows: Array, wanted: Array, limits: Sequence[tuple[float, float]]) -> Array:
    """min |rows x - wanted|, x within limits. The problem is convex: a solution with some constants held on a limit is
    the one if the others lie within theirs and the error would grow wherever a held one left its own.
    """
    ways = product(*[(None, low, high) for low, high in limits])
    for held in sorted(ways, key=lambda way: len(way) - way.count(None)):
        x = np.asarray([0.0 if value is None else value for value in held])
        loose = np.asarray([value is None for value in held])
        if loose.any():
            x[loose] = np.linalg.lstsq(rows[:, loose], wanted - rows @ x, rcond=None)[0]
        slope = rows.T @ (rows @ x - wanted)
        least = 1e-9 * float(np.abs(rows.T @ wanted).max())
        if all(
            low * (1 - 1e-9) <= v <= high * (1 + 1e-9) if h is None else (g >= -least if h == low else g <= least)
            for v, g, h, (low, high) in zip(x, slope, held, limits, strict=True)
        ):
            return x
    raise AssertionError("a convex problem without a least point")


def _least_largest(rows: Array, wanted: Array, limits: Sequence[tuple[float, float]]) -> Array:
    weights = np.full(len(wanted), 1 / len(wanted))
    best, least = _least_squares(rows, wanted, limits), np.inf
    for _ in range(200):
        root = np.sqrt(weights)
        x = _least_squares(rows * root[:, None], wanted * root, limits)
        off = np.abs(rows @ x - wanted)
        if off.max() < least:
            best, least = x, float(off.max())
        if off.max() < 1e-12:
            break
        weights = weights * off + 1e-15
        weights /= weights.sum()
    return best
