"""The width curve as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ffn_fusion.report import palette
from ffn_fusion.report.formats import count
from ffn_fusion.report.svg import render

from matplotlib.ticker import FuncFormatter, NullFormatter  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.latency.width_curve import WidthCurve

_COLOURS = (palette.FUSED, palette.ATTENTION, palette.PRUNED, palette.FFN, palette.DROPPED)


def width_chart(curve: WidthCurve) -> str:
    """Time of the same weights as wider FFNs, over their time as the model has them; a line for each batch."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        axes.axhline(1, color=palette.FAINT, lw=0.9)
        for batch, colour in zip(curve.batches, _COLOURS * len(curve.batches), strict=False):
            points = [point for point in curve.points if point.batch == batch]
            widths, ratios = [p.width for p in points], [p.ratio for p in points]
            axes.errorbar(widths, ratios, [2 * p.error for p in points], color=colour, lw=1.4, label=f"batch {batch}")
        if curve.max_width is not None:
            axes.axvline(curve.max_width, color=palette.FAINT, lw=0.9, ls=(0, (4, 3)))
        axes.set_xticks(sorted({point.width for point in curve.points}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("width of an FFN (log)")
        axes.set_ylabel("time over that\nof the FFNs unfused")
        axes.grid(True, axis="y")
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.03), borderaxespad=0)

    return render(draw, 7.2, 3.0, "chart: time of the same weights as wider FFNs, over their time unfused")
