"""What charts over the parent's blocks share: the axis of blocks, the blueprint shaded behind it, and log labels."""

from __future__ import annotations

from typing import Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.report import palette
from ffn_fusion.report.svg import render  # noqa: F401  first of what needs matplotlib: it says how to get it

from matplotlib.patches import Patch  # isort: skip
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter  # isort: skip

_SHADES = {
    "in a fused run": (palette.FUSED, 0.13),
    "attention dropped, not fused": (palette.DROPPED, 0.18),
}
"""Colour and opacity: those of the bands in the drawing of the blocks, paler, for curves to stand out."""


def block_axis(axes: Any, blocks: int, *, label: bool = True) -> None:
    axes.set_xlim(-0.8, blocks - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(15, integer=True, steps=[1, 2, 5, 10]))
    if label:
        axes.set_xlabel("parent block")


def shade(axes: Any, blueprint: Blueprint) -> None:
    """Behind every block what the blueprint does to it; a fused block's attention is dropped as well."""
    for says, blocks in _shaded(blueprint).items():
        colour, opacity = _SHADES[says]
        for first, last in blocks:
            # the white edge: neighbouring runs stay two runs
            axes.axvspan(first - 0.5, last + 0.5, fc=(colour, opacity), ec="white", lw=1, zorder=0)


def shade_legend(blueprint: Blueprint) -> list[Any]:
    """Handles for the shades that there are."""
    return [
        Patch(color=_SHADES[says][0], alpha=_SHADES[says][1], lw=0, label=says)
        for says, blocks in _shaded(blueprint).items()
        if blocks
    ]


def _shaded(blueprint: Blueprint) -> dict[str, list[tuple[int, int]]]:
    fused = {i for first, last in blueprint.runs for i in range(first, last + 1)}
    alone = [(i, i) for i in blueprint.dropped_attentions if i not in fused]
    return dict(zip(_SHADES, (list(blueprint.runs), alone), strict=True))


def plain_log(axes: Any) -> None:
    """Labels without exponents on a log scale."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if high / low > 30:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:  # hardly one whole decade: label some steps in between as well
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        )
