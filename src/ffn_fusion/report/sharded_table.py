"""Models on several processes, as a table: a step's time, its all-reduces, and what of the time they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ffn_fusion.report.tables import NOTHING, Grid, printable, seconds

if TYPE_CHECKING:
    from ffn_fusion.latency.tensor_parallel import TensorParallel


def sharded_grid(found: Sequence[TensorParallel]) -> Grid:
    """A section for each setting; the first model is compared with."""
    rows: list[tuple[str, ...]] = []
    sections = set()
    for measured in found:
        sections |= {len(rows)} if rows else set()
        name = f"decode, batch {measured.batch}, context {measured.context:,}"
        first = measured.timings[0].model
        for timing in measured.timings:
            cells = (
                seconds(timing.median_s),
                seconds(timing.p10_s, timing.p90_s),
                f"{timing.speedup[first]:.2f}x" if timing.model != first else NOTHING,
                str(timing.measured),
                seconds(timing.all_reduce_s),
            )
            rows.append((name, printable(timing.model), *cells))
            name = ""
    columns = ("setting", "model", "median", "p10–p90", "speed", "all-reduces", "in them")  # noqa: RUF001
    return Grid(columns, tuple(rows), words=2, sections=frozenset(sections))


def sharded_place(found: Sequence[TensorParallel]) -> str:
    """Where it was measured, and what nothing but an all-reduce takes there."""
    first = found[0]
    size = first.timings[0].message_bytes
    bare = seconds(first.cost.seconds(size))
    return printable(
        f"{first.engine} on {first.machine}, {first.processes} processes ({first.backend}), "
        f"{first.threads} threads each, {first.dtype}; a bare all-reduce of {size:,} bytes takes {bare}"
    )
