"""The width curve as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ffn_fusion.report.tables import Grid, printable

if TYPE_CHECKING:
    from ffn_fusion.latency.width_curve import WidthCurve


_UNSURE = 0.03
"""Standard error of a ratio from which on it's said."""


def width_grid(curve: WidthCurve) -> Grid:
    """A row for each width: its time over that of the same FFNs one after the other, at every batch."""
    rows = []
    for width in sorted({point.width for point in curve.points}):
        points = [point for point in curve.points if point.width == width]
        cells = [f"{p.ratio:.3f} ± {p.error:.3f}{' slower' if p.slower else ''}" for p in points]
        rates = [f"{p.bytes_per_second / 1e9:.1f}" for p in points]
        rows.append(
            (f"{width:,}", str(points[0].fused), *(cell for pair in zip(cells, rates, strict=True) for cell in pair))
        )
    columns = [name for batch in curve.batches for name in (f"batch {batch}: time / unfused", "GB/s")]
    return Grid(("width", "FFNs in it", *columns), tuple(rows), words=0)


def width_lines(curve: WidthCurve) -> list[str]:
    """Where it was measured, and what follows."""
    place = f"{curve.engine} on {curve.machine}, {curve.threads} threads, {curve.dtype}"
    if curve.max_width is None:
        found = "no width that the model can have is slower: plans needn't limit it"
    else:
        found = f"widest FFN that isn't slower: {curve.max_width:,}"
    return [printable(place), found, *_doubts(curve)]


def _doubts(curve: WidthCurve) -> list[str]:
    error = max(point.error for point in curve.points)
    if error <= _UNSURE:
        return []
    return [f"ratios are only known to {2 * error:.2f}: measure on a quiet machine, or with more --rounds"]
