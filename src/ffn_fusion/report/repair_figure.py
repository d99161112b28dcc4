"""What is left behind each repaired place, as bars over the parent's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.report import palette
from ffn_fusion.report.block_axis import block_axis, shade, shade_legend
from ffn_fusion.report.svg import render

from matplotlib.patches import Patch  # isort: skip
from matplotlib.ticker import PercentFormatter  # isort: skip

_LOOKS = {"attention": (palette.ATTENTION, "its attention", -0.2), "ffn": (palette.FFN_LINE, "its FFN", 0.2)}


def repair_bars(record: Mapping[str, Any], blueprint: Blueprint) -> str:
    """Squared distance to the parent's state on held-out tokens, of what it was before the place was solved.

    A bar stands where the child's block ends; a place that kept its weights is at 100 %.
    """
    places = record["places"]
    parts = [part for part in _LOOKS if any(row["part"] == part for row in places)]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        shade(axes, blueprint)
        for part in parts:
            colour, _, aside = _LOOKS[part]
            rows = [row for row in places if row["part"] == part]
            at = [row["parent_last"] + (aside if len(parts) > 1 else 0) for row in rows]
            axes.bar(at, [row["held_out_error"] for row in rows], color=colour, width=0.8 / len(parts))
        axes.axhline(1, color=palette.FAINT, lw=0.8, ls=(0, (4, 3)))
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("error left\n(held-out tokens)")
        block_axis(axes, len(blueprint.parent.blocks))
        bars = [Patch(color=_LOOKS[part][0], label=_LOOKS[part][1]) for part in parts]
        handles = bars + shade_legend(blueprint)
        axes.legend(handles=handles, ncols=len(handles), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)

    return render(draw, 10.6, 2.6, "bars: error left at every repaired place, over the parent's blocks")
