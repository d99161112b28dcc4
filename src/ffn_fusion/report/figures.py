"""The figures of a report, each as SVG text: what was measured, with the blueprint drawn into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.report import palette
from ffn_fusion.report.block_axis import block_axis, plain_log
from ffn_fusion.report.blocks_figure import blocks_diagram
from ffn_fusion.report.distillation_figure import distillation_curve, has_curve
from ffn_fusion.report.evidence_grids import chosen_runs
from ffn_fusion.report.formats import printable
from ffn_fusion.report.geometry_figure import geometry_chart
from ffn_fusion.report.importance_figure import importance_bars
from ffn_fusion.report.quality_speed_figure import quality_speed_plot
from ffn_fusion.report.repair_figure import repair_bars
from ffn_fusion.report.svg import render

from matplotlib.colors import LogNorm  # isort: skip
from matplotlib.lines import Line2D  # isort: skip
from matplotlib.patches import Rectangle  # isort: skip
from matplotlib.ticker import MaxNLocator, NullFormatter  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.analysis.evidence import Evidence, Matrix

__all__ = [
    "blocks_diagram",
    "dependency_heatmap",
    "distillation_curve",
    "geometry_chart",
    "has_curve",
    "importance_bars",
    "quality_speed_plot",
    "repair_bars",
    "runs_chart",
]

DEPENDENCY_EXPONENTS = (-9, -1)
"""Ends of the colour scale of heat maps, powers of two: the paper's, so that maps of all models compare."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def dependency_heatmap(
    matrix: Matrix, title: str, dropped: Sequence[int] = (), runs: Sequence[tuple[int, int]] = ()
) -> str:
    """M [L, L] above the diagonal: row i removed, column j looked at (arXiv 2503.18908, block dependency).

    ``runs`` are framed; ``dropped`` attentions are marked on the diagonal, which holds no measurement.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        low, high = DEPENDENCY_EXPONENTS
        values = np.ma.masked_invalid(np.where(np.triu(np.ones_like(matrix), 1) > 0, matrix, np.nan))
        norm = LogNorm(2.0**low, 2.0**high, clip=True)
        image = axes.imshow(values, cmap="viridis", norm=norm, interpolation="none")
        for first, last in runs:
            side = last - first + 1
            frame = Rectangle((first - 0.5, first - 0.5), side, side, fill=False, lw=1.6, ec=palette.DROPPED)
            axes.add_patch(frame)
        for i in dropped:
            axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fc=palette.DROPPED, lw=0))
        axes.set(xlabel="block looked at, j", ylabel="block removed, i")
        axes.set_title(printable(title))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
        # the triangle below the diagonal is empty: the scale stands there
        inset = axes.inset_axes((0.07, 0.12, 0.42, 0.035))
        bar = figure.colorbar(image, cax=inset, orientation="horizontal")
        bar.set_ticks([2.0**e for e in range(low, high + 1, 2)], labels=[_power(e) for e in range(low, high + 1, 2)])
        bar.ax.xaxis.set_minor_formatter(NullFormatter())
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        inset.set_title("cosine distance", fontsize=8, fontweight="normal")

    return render(draw, 4.2, 4.2, f"heat map: {printable(title)}")


def _power(exponent: int) -> str:
    return "2" + str(exponent).translate(_SUPERSCRIPT)


def runs_chart(evidence: Evidence, blueprint: Blueprint) -> str:
    """Every measured run as a line over its blocks, as high as its damage; the blueprint's stand out."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        chosen = chosen_runs(evidence.runs, blueprint)
        others = [run for run in evidence.runs if run not in chosen]
        axes.set_yscale("log")
        for group, colour, width, alpha in (
            (others, palette.FAINT, 1.1, 0.55),
            (chosen, palette.DROPPED, 3.2, 1.0),
        ):
            for s in group:
                height = max(s.damage.kl, 1e-7)
                ends = (s.dropped[0] - 0.35, s.dropped[-1] + 0.35) if s.dropped else (s.first, s.last)
                axes.plot(ends, (height, height), color=colour, lw=width, alpha=alpha, solid_capstyle="round")
        for s in chosen:
            place = ((s.dropped[0] + s.dropped[-1]) / 2, s.damage.kl)
            style = {"color": palette.DROPPED, "fontweight": "bold"}
            axes.annotate(format_blocks(s.dropped), place, (0, 5), textcoords="offset points", ha="center", **style)
        block_axis(axes, len(evidence.parent.blocks))
        axes.set_ylabel("KL from parent\n(nats a token, log)")
        axes.grid(True, axis="y")
        plain_log(axes)
        handles = [
            Line2D([], [], color=palette.FAINT, lw=1.1, label="measured"),
            Line2D([], [], color=palette.DROPPED, lw=3.2, label="in the blueprint"),
        ]
        axes.legend(handles=handles, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)

    return render(draw, 10.6, 3.0, "chart: damage of every measured run of dropped attentions, over its blocks")
