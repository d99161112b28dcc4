"""Binary programmes solved to proven optimality by HiGHS through SciPy.

The relaxed programme (x between 0 and 1) bounds every solution from below, and its reduced costs say by how much at
least a variable raises that bound when it's 1. So only variables of a small reduced cost are tried first: a solution
within their margin of the bound is the best of all, since any other variable would cost more than that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.errors import MissingExtraError

Floats = npt.NDArray[np.float64]

_MARGIN = 0.002
"""Reduced costs of the variables that are tried first, as a share of the relaxed programme's value."""
_ROUNDING = 1e-6
"""Absolute, for costs of which the largest is 1,000."""


@dataclass(frozen=True)
class BinaryProgramme:
    """Minimise costs x such that low <= matrix x <= high, with x binary and at most ``upper``.

    Args:
        costs: [variables]. upper: [variables], 0 or 1. matrix: [rows, variables], sparse. low, high: [rows].
    """

    costs: Floats
    upper: Floats
    matrix: Any
    low: Floats
    high: Floats

    def solve(self, seconds: float) -> tuple[npt.NDArray[np.bool_] | None, float] | None:
        """Solve it.

        Returns:
            x and its gap, which is 0 where x is proven optimal; None and 0 where it's proven that there is no x; None
            where none was found in time.

        Raises:
            MissingExtraError: SciPy isn't installed.
        """
        end = time.monotonic() + seconds
        with _quiet():
            near = self._solve_near(end)
            if near is not None:
                return near, 0.0
            found = self._solve(self.upper, end)
        if found.x is not None:
            return found.x > 0.5, 0.0 if found.status == 0 else float(found.mip_gap or 0.0) or np.inf
        return (None, 0.0) if found.status == 2 else None

    def _solve_near(self, end: float) -> npt.NDArray[np.bool_] | None:
        """The optimum, if it's proven on the variables near to the relaxed one."""
        if not self.costs.any():
            return None
        least, reduced = self._relaxed(end)
        if reduced is None:
            return None
        margin = _MARGIN * abs(least)
        while not (near := reduced <= margin + _ROUNDING).all():
            found = self._solve(self.upper * near, end)
            if found.x is None or found.status != 0:
                return None
            if found.fun - least <= margin:
                return np.asarray(found.x > 0.5)
            margin = found.fun - least
        return None

    def _relaxed(self, end: float) -> tuple[float, Floats | None]:
        """Value and reduced costs of the relaxed programme."""
        optimize, sparse = scipy()
        same = self.low == self.high
        above, below = ~same & np.isfinite(self.high), ~same & np.isfinite(self.low)
        found = optimize.linprog(
            self.costs,
            sparse.vstack([self.matrix[above], -self.matrix[below]]),
            np.concatenate([self.high[above], -self.low[below]]),
            self.matrix[same],
            self.high[same],
            np.stack([np.zeros_like(self.upper), self.upper], axis=1),
            options={"time_limit": max(end - time.monotonic(), 0.01)},
        )
        return (found.fun, found.lower.marginals) if found.status == 0 else (0.0, None)

    def _solve(self, upper: Floats, end: float) -> Any:
        optimize, _ = scipy()
        return optimize.milp(
            self.costs,
            integrality=np.ones_like(self.costs),
            bounds=optimize.Bounds(0, upper),
            constraints=optimize.LinearConstraint(self.matrix, self.low, self.high),
            options={"time_limit": max(end - time.monotonic(), 0.01), "mip_rel_gap": 0},
        )


def scipy() -> tuple[Any, Any]:
    """SciPy's optimize and sparse. Raises: MissingExtraError: it isn't installed."""
    try:
        from scipy import optimize, sparse
    except ImportError as error:
        raise MissingExtraError("a search needs SciPy", "pip install 'ffn-fusion[search]'") from error
    return optimize, sparse


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS sometimes prints a line meant for its own developers to standard output, where JSON may be expected."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
