"""Fit a machine's constants to measured times, and tell how well the fit predicts times that it hasn't seen.

A decode step's time is linear in 1 / memory_efficiency and in every constant that is a time, as long as it is bound by
reading and not by arithmetic. So the fit is linear: least squares of relative errors, or the least largest relative
error (a linear programme). It is solved again around its own solution, because the maximum in the model of the machine
makes it not quite linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""The constants to fit where whole decode steps were timed: the share of the bandwidth that the engine reaches, and its
overheads."""


@dataclass(frozen=True)
class Observation:
    """The measured time of one decode step of a model: ``seconds`` for one token of every sequence."""

    name: str
    spec: ModelSpec
    setting: Setting
    seconds: float


@dataclass(frozen=True)
class Fit:
    """A machine with its fitted constants, and the relative errors of its predictions.

    Attributes:
        errors: of each observation that was fitted to.
        left_out: of each observation, predicted by a machine that was fitted without it; None where too few
            observations were left for that.
    """

    machine: Machine
    errors: tuple[float, ...]
    left_out: tuple[float, ...] | None


def predicted(machine: Machine, seen: Observation) -> float:
    """Predict the seconds of an observed decode step."""
    return step_seconds(machine, seen.spec, seen.setting, decode_step(seen.setting)).total


def errors(machine: Machine, seen: Sequence[Observation]) -> tuple[float, ...]:
    """Compute predicted / measured - 1 of each observation."""
    return tuple(predicted(machine, one) / one.seconds - 1 for one in seen)


def fit_machine(
    machine: Machine, seen: Sequence[Observation], free: Bounds = CPU_CONSTANTS, *, goal: Goal = "squares"
) -> Fit:
    """Fit some of a machine's constants to measured decode steps.

    Args:
        machine: where the fit begins, and the source of the constants that aren't fitted.
        free: the constants to fit, each with its least and its largest value.
        goal: what is made small: the sum of squared relative errors, or the largest relative error.

    Raises:
        UsageError: there are fewer observations than constants.
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
    for _ in range(6):  # exact after the first as long as no maximum changes sides
        rows, rest = _linear(machine, seen, free)
        solve = least_squares if goal == "squares" else least_largest
        here, values = _values(machine, free), solve(rows, 1 - rest, _limits(free))
        machine = _with(machine, free, values)
        if np.allclose(here, values, rtol=1e-6, atol=0):
            break
    return machine.model_copy(update={"fitted": tuple(free)})


def _linear(machine: Machine, seen: Sequence[Observation], free: Bounds) -> tuple[Array, Array]:
    """Linearise each observation's time, as a share of the measured one: its slope in each constant, and the rest."""
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


def least_squares(rows: Array, wanted: Array, limits: Sequence[tuple[float, float]]) -> Array:
    """Find the x within ``limits`` that makes |rows x - wanted| least."""
    from scipy.optimize import lsq_linear

    scale, bounds = _scaled(rows, limits)
    found: Array = lsq_linear(rows / scale, wanted, bounds, method="bvls", tol=1e-14).x
    return found / scale


def least_largest(rows: Array, wanted: Array, limits: Sequence[tuple[float, float]]) -> Array:
    """Find the x within ``limits`` that makes the largest entry of |rows x - wanted| least.

    That is a linear programme: minimise t where -t <= rows x - wanted <= t.
    """
    from scipy.optimize import linprog

    scale, (low, high) = _scaled(rows, limits)
    within = np.full((len(rows), 1), -1.0)
    sides = np.block([[rows / scale, within], [-rows / scale, within]])
    aim = [*np.zeros(len(scale)), 1.0]
    found = linprog(aim, sides, [*wanted, *-wanted], bounds=[*zip(low, high, strict=True), (0, None)])
    solution: Array = found.x[:-1]
    return solution / scale


def _scaled(rows: Array, limits: Sequence[tuple[float, float]]) -> tuple[Array, tuple[Array, Array]]:
    """The columns' lengths, and the limits in units of them: seconds are far smaller than shares of a bandwidth."""
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    low, high = np.asarray(limits, dtype=float).T
    return scale, (low * scale, high * scale)
