"""How a repair is made. Imports nothing heavy: recipes and the command line name the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weighting = Literal["none", "inverse-energy", "capped"]
Target = Literal["parent", "sequential"]
Solver = Literal["auto", "primal", "dual"]

DEFAULT_TOKENS = 24_576
DEFAULT_HORIZON = 6
DEFAULT_ATTENTION = True
DEFAULT_HELD_OUT = 0.2
DEFAULT_WEIGHTING: Weighting = "inverse-energy"
LAMBDAS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class RepairSettings:
    """How places are repaired.

    Args:
        horizon: unchanged blocks behind a changed one that are solved as well, to absorb what is left.
        lambdas: relative to the mean diagonal of the normal equations; the best on held-out windows is taken, or none.
        held_out: share of the windows that decides.
        weighting: how outlier tokens are kept from owning the fit (``solve.token_weights``).
        target: whose states are to be reached: the parent's, or those of the same child never fused.
        attention: output projections of attentions are solved too, wherever a place's block has one.
        bias: where the model's projections have a bias, it's solved too.
        solver: ``primal`` factorises a matrix of width^2 numbers, ``dual`` one of (tokens)^2; the solution is the same.
            ``auto``: the smaller of the two.
        in_order: every place sees the states that the places before it leave. False, for comparison: the unrepaired
            child's.
    """

    horizon: int = DEFAULT_HORIZON
    lambdas: tuple[float, ...] = LAMBDAS
    held_out: float = DEFAULT_HELD_OUT
    weighting: Weighting = DEFAULT_WEIGHTING
    target: Target = "parent"
    attention: bool = DEFAULT_ATTENTION
    bias: bool = True
    solver: Solver = "auto"
    in_order: bool = True
