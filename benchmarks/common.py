"""What every benchmark prints: a table for people and, as its last line, one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from ffn_fusion.latency.measure import machine


def finish(
    name: str,
    figures: Mapping[str, float],
    goals: Mapping[str, float],
    met: bool,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Print the result and exit: 0 if every goal is met.

    Args:
        figures: what was measured. goals: upper bounds, by the names of figures.
        notes: what a figure was measured on.
    """
    width = max(map(len, figures))
    for key, value in figures.items():
        goal = f"   goal <= {goals[key]:g}" if key in goals else ""
        print(f"{key:{width}}  {value:12.4g}{goal}")
    result = {"benchmark": name, "machine": machine(), "figures": dict(figures), "goals": dict(goals), "met": met}
    print(json.dumps({**result, **({"notes": dict(notes)} if notes else {})}))
    sys.exit(0 if met else 1)
