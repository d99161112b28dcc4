"""Why it works (arXiv 2503.18908): how far every block turns the state, which way it points, how much it adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.report import palette
from ffn_fusion.report.block_axis import block_axis, plain_log, shade, shade_legend
from ffn_fusion.report.svg import render

from matplotlib.lines import Line2D  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.analysis.evidence import Geometry

_PANELS = (
    ("turn", "turn: cosine distance of X to X + h (log)"),
    ("direction", "direction: cosine distance of h to X (1: at right angles)"),
    ("size", "size: |h| / |X| (log)"),
)
_LIGHT: dict[str, Any] = {"lw": 1.0, "ms": 2.2, "marker": "o", "alpha": 0.8}
_MAIN: dict[str, Any] = {"lw": 1.8, "ms": 3.2, "marker": "o"}
_LOOKS: dict[str, dict[str, Any]] = {
    "attention": {"label": "its attention", "color": palette.ATTENTION, **_LIGHT},
    "ffn": {"label": "its FFN", "color": palette.FFN_LINE, **_LIGHT},
    "block": {"label": "whole block", "color": palette.INK, **_MAIN},
}
_CHILD: dict[str, Any] = {**_MAIN, "label": "the child's block", "color": palette.FUSED, "marker": "D"}


def geometry_chart(
    geometry: Sequence[Geometry], blueprint: Blueprint, child: Sequence[tuple[float, Geometry]] | None = None
) -> str:
    """Three panels over the parent's blocks; whole blocks stand out from their attentions and FFNs.

    Args:
        child: the child's geometry, each with the place on the parent's axis: the middle of the parent blocks that
            the child's block stands for. Only its whole blocks are drawn: six curves can't be told apart.
    """
    blocks = len(blueprint.parent.blocks)
    parts = [part for part in _LOOKS if any(row.part == part for row in geometry)]
    of_child = sorted(((place, row) for place, row in child or () if row.part == "block"), key=lambda pair: pair[0])

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(_PANELS), sharex=True)
        for axes, (measure, title) in zip(panels, _PANELS, strict=True):
            shade(axes, blueprint)
            log = measure != "direction"
            if log:
                axes.set_yscale("log")
            else:
                axes.axhline(1, color=palette.FAINT, lw=0.8, ls=(0, (4, 3)))
            for part in parts:
                values = np.full(blocks, np.nan)  # a gap where a block has no such part
                for row in geometry:
                    if row.part == part:
                        values[row.block] = getattr(row, measure)
                axes.plot(np.arange(blocks), _drawable(values, log), **_LOOKS[part])
            if of_child:
                values = np.array([getattr(row, measure) for _, row in of_child])
                axes.plot([place for place, _ in of_child], _drawable(values, log), **_CHILD)
            axes.set_title(title, fontsize=9)
            axes.grid(True, axis="y")
            if log:
                plain_log(axes)
            block_axis(axes, blocks, label=axes is panels[-1])
        handles = [Line2D([], [], **_LOOKS[part]) for part in reversed(parts)]
        handles += [Line2D([], [], **_CHILD)] if of_child else []
        handles += shade_legend(blueprint)
        figure.legend(handles=handles, ncols=len(handles), loc="outside upper left", columnspacing=1.4)

    return render(draw, 10.6, 6.0, "curves over the blocks: turn, direction and size of what each block adds")


def _drawable(values: np.ndarray[Any, np.dtype[np.float64]], log: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.where(values > 0, values, np.nan) if log else values  # a log axis has no place for zero
