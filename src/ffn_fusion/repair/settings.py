"""How a repair is made. Imports nothing heavy: recipes and the command line name the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weighting = Literal["none", "inverse-energy", "capped"]

DEFAULT_HORIZON = 6
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
        weighting: how outlier tokens are kept from owning the fit (``surgery.token_weights``).
    """

    horizon: int = DEFAULT_HORIZON
    lambdas: tuple[float, ...] = LAMBDAS
    held_out: float = DEFAULT_HELD_OUT
    weighting: Weighting = DEFAULT_WEIGHTING
