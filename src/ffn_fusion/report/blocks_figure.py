"""The blueprint drawn: the parent's blocks in a row, and the child's below them.

What is computed one after the other goes from left to right, and the height of an FFN is its width. A fused run becomes
one tall FFN, and the child is shorter. A tooltip says what each box is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.report import palette
from ffn_fusion.report.model_grids import sequential_steps
from ffn_fusion.report.svg import render

from matplotlib.patches import FancyBboxPatch, Patch, Polygon  # isort: skip

WIDTH = 1120.0
"""Width of the drawing in its own square units, in which a usual FFN is 32 high."""
_INCHES = 10.6
_USUAL, _TALLEST = 32.0, 170.0
_ATTENTION, _FFN, _GAP = 0.85, 1.0, 0.35
"""Widths of boxes and of the gap between blocks, as shares of an FFN's."""
_TOP, _BAND = 54.0, 46.0
_LABEL = 96.0
_FILL = {
    "attention": (palette.ATTENTION, "attention"),
    "ffn": (palette.FFN, "FFN (height: its width)"),
    "linear": (palette.LINEAR, "linear"),
    "dropped": ("#fbe3d2", "dropped attention"),
    "fused": (palette.FUSED, "fused FFN"),
}
_BANDS = {"fused": (palette.FUSED, 0.28), "changed": (palette.DROPPED, 0.25), "same": (palette.FAINT, 0.12)}


@dataclass(frozen=True)
class _Box:
    """A sub-block. ``seams``: where those meet that a merged one is made of, from the band on."""

    x: float
    width: float
    height: float
    kind: str
    says: str
    seams: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Place:
    """A block: its left and right edge, and its boxes."""

    left: float
    right: float
    boxes: tuple[_Box, ...]


@dataclass(frozen=True)
class _Scale:
    """Widths of boxes and heights of FFNs. ``plain``: height of what has no width, attentions and linear layers."""

    unit: float
    per_width: float
    plain: float

    @classmethod
    def of(cls, blueprint: Blueprint) -> _Scale:
        parent = blueprint.parent.blocks
        units = sum(_GAP + _ATTENTION * bool(block.attention) + _FFN * bool(block.ffn) for block in parent)
        widths = sorted(block.ffn_width for block in parent if block.ffn_width) or [1]
        usual, widest = widths[len(widths) // 2], max([widths[-1], *map(blueprint.width, blueprint.blocks)])
        per_width = min(_USUAL / usual, _TALLEST / widest)
        return cls(min((WIDTH - 20) / max(units, 1), 26.0), per_width, max(0.7 * usual * per_width, 8.0))

    def ffn(self, width: int) -> float:
        return max(width * self.per_width, 4.0) if width else self.plain


def blocks_diagram(blueprint: Blueprint) -> str:
    """Parent and child, as one ``<svg>`` element."""
    scale = _Scale.of(blueprint)
    parent = _row(Blueprint.identity(blueprint.parent), scale, frozenset(blueprint.dropped_attentions))
    child = _row(blueprint, scale)
    floor = _TOP + _tallest(parent, scale)  # the parent's boxes stand on it, and the child's hang below the bands
    ceiling = floor + _BAND
    bottom = ceiling + _tallest(child, scale) + (36 if blueprint.runs else 6)
    before, after = sequential_steps(blueprint)

    def draw(figure: Any) -> None:
        figure.set_layout_engine("none")  # the axes are all there is
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(bottom + 30, 0))
        axes.set_axis_off()
        _title(axes, 14, len(parent), "parent", before)
        _title(axes, bottom + 20, len(blueprint.kept_blocks), "child", after)
        _legend(axes, (*parent, *child))
        _numbers(axes, parent, floor - _tallest(parent, scale) - 6)
        _bands(axes, blueprint, parent, child, (floor + 3, ceiling - 3))
        for place, upwards in ((parent, True), (child, False)):
            for number, box in enumerate(box for found in place if found for box in found.boxes):
                _draw(axes, box, floor - box.height if upwards else ceiling, f"{'pc'[not upwards]}{number}")
        _fewer(axes, before - after, parent, child, ceiling + scale.plain / 2)
        _run_labels(axes, blueprint, child, ceiling)

    titles = {
        f"{row}{number}": box.says
        for row, places in (("p", parent), ("c", child))
        for number, box in enumerate(box for place in places if place for box in place.boxes)
    }
    label = f"blocks of parent and child; fused runs: {format_runs(blueprint.runs)}"
    return render(draw, _INCHES, _INCHES * (bottom + 30) / WIDTH, label, titles)


# ---- where the boxes are


def _row(blueprint: Blueprint, scale: _Scale, dropped: frozenset[int] | None = None) -> list[_Place | None]:
    """A place for each block, None for one that is gone; with ``dropped``, of the parent."""
    places: list[_Place | None] = []
    x, number = 10.0, 0
    for block in blueprint.blocks:
        if block.empty and dropped is None:
            places.append(None)
            continue
        boxes = tuple(_boxes(blueprint, block, number, x, scale, dropped))
        right = boxes[-1].x + boxes[-1].width if boxes else x
        places.append(_Place(x, right, boxes))
        x = right + _GAP * scale.unit
        number += 1
    return places


def _boxes(
    blueprint: Blueprint, block: Block, number: int, x: float, scale: _Scale, dropped: frozenset[int] | None
) -> Iterator[_Box]:
    first, last = block.parent_blocks
    name = f"child block {number} (parent {format_blocks(range(first, last + 1))})"
    name = name if dropped is None else f"block {number}"
    parents = blueprint.parent.blocks
    attention, ffn = block.attention, block.ffn
    if sizes := blueprint.sizes(block, "attention"):
        gone = bool(dropped and set(attention.sources) & dropped)
        label = attention.label("attention", blueprint.parent.had("attention", attention.sources))
        says = f"{name}: {label}{', dropped' if gone else ''}"
        count = len(attention.sources)
        seams = tuple(scale.plain * k for k in range(1, count))
        height = scale.plain * count
        yield _Box(x, _ATTENTION * scale.unit, height, "dropped" if gone else sizes.kind, says, seams)
        x += _ATTENTION * scale.unit
    if not ffn.present:
        return
    width, had = blueprint.width(block), blueprint.parent.had("ffn", ffn.sources)
    says = f"{name}: {ffn.label('ffn', had)}"
    if len(had) == 1:
        yield _Box(x, _FFN * scale.unit, scale.ffn(width), "ffn" if width else "linear", says)
        return
    ends = accumulate(parents[source].ffn_width for source in ffn.sources)
    seams = tuple(end / width * scale.ffn(width) for end in ends)[:-1]
    wide = max(_FFN * scale.unit, 13.0)  # seen even among 126 blocks
    yield _Box(x, wide, scale.ffn(width), "fused", says, seams)


def _tallest(places: Sequence[_Place | None], scale: _Scale) -> float:
    return max((box.height for place in places if place for box in place.boxes), default=scale.plain)


# ---- how they are drawn


def _draw(axes: Any, box: _Box, y: float, name: str) -> None:
    gap = min(box.width * 0.06, 0.8)  # neighbouring boxes stay two boxes
    left, right = box.x + gap, box.x + box.width - gap
    edge = {"ec": palette.DROPPED, "lw": min(0.8, box.width / 8)} if box.kind == "dropped" else {"lw": 0}
    style = f"round,pad=0,rounding_size={min(2.0, box.width / 5, box.height / 2)}"
    patch = FancyBboxPatch((left, y), right - left, box.height, style, fc=_FILL[box.kind][0], **edge)
    patch.set_gid(name)
    axes.add_patch(patch)
    axes.hlines([y + seam for seam in box.seams], left, right, color="white", lw=0.6, alpha=0.75)


def _title(axes: Any, y: float, blocks: int, of: str, steps: int) -> None:
    axes.text(10, y, f"{of}: {blocks} blocks, {steps} sub-blocks one after the other", weight="bold")


def _legend(axes: Any, places: Sequence[_Place | None]) -> None:
    kinds = {box.kind for place in places if place for box in place.boxes} | {"attention", "ffn"}
    handles = [Patch(fc=colour, label=label) for kind, (colour, label) in _FILL.items() if kind in kinds]
    axes.legend(handles=handles, ncols=len(handles), loc="upper right", borderpad=0, handlelength=1, handleheight=1,
                columnspacing=1.4)  # fmt: skip


def _numbers(axes: Any, places: Sequence[_Place | None], y: float) -> None:
    every = 1 if len(places) <= 12 else 5 if len(places) <= 60 else 10
    for i, place in enumerate(places):
        if place and i % every == 0:
            axes.text((place.left + place.right) / 2, y, str(i), ha="center", fontsize=8)


def _bands(
    axes: Any,
    blueprint: Blueprint,
    parent: Sequence[_Place | None],
    child: Sequence[_Place | None],
    between: tuple[float, float],
) -> None:
    """From the parent blocks down to the child block they became; unchanged neighbours share one band."""
    groups: list[tuple[str, _Place, _Place, _Place, _Place]] = []
    identity = Blueprint.identity(blueprint.parent).blocks
    for block, place in zip(blueprint.blocks, child, strict=True):
        first, last = (parent[i] for i in block.parent_blocks)
        if place is None or first is None or last is None:
            continue
        same = block == identity[block.parent_blocks[0]]
        kind = "fused" if len(block.ffn.sources) > 1 else "same" if same else "changed"
        if kind == "same" and groups and groups[-1][0] == "same":
            groups[-1] = (*groups[-1][:2], last, groups[-1][3], place)
        else:
            groups.append((kind, first, last, place, place))
    top, bottom = between
    for kind, first, last, to_first, to_last in groups:
        colour, alpha = _BANDS[kind]
        corners = [(first.left, top), (last.right, top), (to_last.right, bottom), (to_first.left, bottom)]
        axes.add_patch(Polygon(corners, fc=colour, alpha=alpha, lw=0))


def _fewer(axes: Any, steps: int, parent: Sequence[_Place | None], child: Sequence[_Place | None], y: float) -> None:
    """In the room that the child leaves free: how many sub-blocks fewer it has."""
    start, end = (max((place.right for place in row if place), default=10.0) for row in (child, parent))
    if end - start < 170 or steps <= 0:
        return
    line = {"color": palette.FAINT, "lw": 0.7, "ls": (0, (3, 3))}
    axes.plot((start + 10, end), (y, y), **line)
    axes.plot((end, end), (y - 5, y + 5), color=palette.FAINT, lw=0.7)
    words = axes.text((start + end) / 2, y, f"{steps} sub-blocks fewer", ha="center", va="center")
    words.set_bbox({"fc": "white", "lw": 0, "pad": 3})


def _run_labels(axes: Any, blueprint: Blueprint, child: Sequence[_Place | None], ceiling: float) -> None:
    """Below each fused FFN: the blocks that it is made of, and its width."""
    fused = [
        (block, place.boxes[-1])
        for block, place in zip(blueprint.blocks, child, strict=True)
        if place and len(block.ffn.sources) > 1
    ]
    y = ceiling + max((box.height for _, box in fused), default=0) + 18
    xs = _spread([box.x + box.width / 2 for _, box in fused])
    for (block, box), x in zip(fused, xs, strict=True):
        foot, at = ceiling + box.height + 2, box.x + box.width / 2
        if y - 14 - foot > 4 or abs(x - at) > 1:
            axes.plot((at, at, x), (foot, max(foot, y - 20), y - 11), color=palette.FAINT, lw=0.5)
        blocks = f"{block.ffn.sources[0]}–{block.ffn.sources[-1]}"  # noqa: RUF001
        axes.text(x, y, blocks, ha="center", weight="bold")
        axes.text(x, y + 14, f"{blueprint.width(block):,} wide", ha="center", fontsize=8)


def _spread(wanted: Sequence[float]) -> list[float]:
    """Places near those wanted (ascending) where labels neither overlap nor leave the drawing."""
    apart = min(_LABEL, (WIDTH - 20) / max(len(wanted), 1))
    places: list[float] = []
    for at in wanted:
        places.append(max(at, places[-1] + apart if places else apart / 2))
    limit = WIDTH - apart / 2
    for i in reversed(range(len(places))):
        places[i] = limit = min(places[i], limit)
        limit -= apart
    return places
