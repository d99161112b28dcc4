"""The blueprint as a drawing: the parent's blocks in a row, the child's under it. Plain SVG by hand.

Left to right is what is computed one after the other; the height of an FFN is its width. So a fused run is
seen to become one tall FFN, and the child to be shorter. Hovering over a block says what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_runs
from ffn_fusion.report import palette
from ffn_fusion.report.blocks_layout import (
    MARGIN,
    WIDTH,
    Box,
    Place,
    child_places,
    parent_places,
    scale_of,
)
from ffn_fusion.report.tables import sequential_steps

_BAND = 46.0
_TITLE_WIDTH = 420.0


def blocks_diagram(blueprint: Blueprint) -> str:
    """Before and after, as one ``<svg>`` element."""
    scale = scale_of(blueprint)
    parent, child = parent_places(blueprint, scale), child_places(blueprint, scale)
    tall_parent = max((box.height for place in parent for box in place.boxes), default=scale.plain)
    tall_child = max((box.height for place in child if place for box in place.boxes), default=scale.plain)
    floor = 54 + tall_parent  # the parent's boxes stand on it, the child's hang below the bands
    ceiling = floor + _BAND
    fused = [
        (f"{block.ffn.sources[0]}–{block.ffn.sources[-1]}", blueprint.width(block), place.boxes[-1])  # noqa: RUF001
        for block, place in zip(blueprint.blocks, child, strict=True)
        if block.ffn.kind == "fused" and place
    ]
    labels_y = ceiling + tall_child + 18
    labels_x = _spread([box.x + box.width / 2 for _, _, box in fused])
    # the child's title stands close under its blocks where nothing hangs down there
    free = min([*labels_x, *(box.x for _, _, box in fused)], default=0) > _TITLE_WIDTH + 50
    bottom = labels_y + 14 if fused else ceiling + tall_child
    title_y = ceiling + scale.tallest_plain + 22 if free else bottom + 22
    height = max(bottom, title_y) + 6
    before, after = sequential_steps(blueprint)
    parts = [
        _title(MARGIN, 14, f"parent: {len(parent)} blocks", before),
        *_legend(blueprint),
        *_numbers(parent, floor - tall_parent - 6),
        *_bands(blueprint, parent, child, floor + 3, ceiling - 3),
        *(_draw(box, floor - box.height) for place in parent for box in place.boxes),
        *(_draw(box, ceiling) for place in child if place for box in place.boxes),
        *_shorter(blueprint, parent, child, ceiling + scale.tallest_plain / 2),
        *_run_labels(fused, labels_x, ceiling, labels_y),
        _title(MARGIN, title_y, f"child: {len(blueprint.kept_blocks)} blocks", after),
    ]
    label = f"blocks of parent and child; fused runs: {format_runs(blueprint.runs)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:.1f}" role="img" '
        f'aria-label="{escape(label)}" font-family="DejaVu Sans, sans-serif" font-size="12">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


_FILL = {
    "attention": palette.ATTENTION,
    "ffn": palette.FFN,
    "fused": palette.FUSED,
    "linear": palette.LINEAR,
    "dropped": "#fbe3d2",
}


def _draw(box: Box, y: float) -> str:
    gap = min(box.width * 0.06, 0.8)  # neighbouring boxes stay two boxes
    left, right, corner = box.x + gap, box.x + box.width - gap, min(2.0, box.width / 5)
    edge = f' stroke="{palette.DROPPED}" stroke-width="{min(1.2, box.width / 5):.2f}"'
    rect = (
        f'<rect x="{left:.2f}" y="{y:.2f}" width="{right - left:.2f}" height="{box.height:.2f}" '
        f'rx="{corner:.2f}" fill="{_FILL[box.kind]}"{edge if box.kind == "dropped" else ""}>'
        f"<title>{escape(box.says)}</title></rect>"
    )
    path = "".join(f"M{left:.2f},{y + seam:.2f}H{right:.2f}" for seam in box.seams)
    return rect + (f'<path d="{path}" stroke="#fff" stroke-width="0.9" stroke-opacity="0.75"/>' if path else "")


def _text(x: float, y: float, text: str, *, anchor: str = "start", style: str = "", size: float = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" '
        f'fill="{palette.INK}"{style and " " + style}>{escape(text)}</text>'
    )


_BOLD = 'font-weight="bold"'


def _title(x: float, y: float, what: str, steps: int) -> str:
    return _text(x, y, f"{what}, {steps} sub-blocks one after the other", style=_BOLD)


def _shorter(blueprint: Blueprint, parent: Sequence[Place], child: Sequence[Place | None], y: float) -> Iterator[str]:
    """In the room that the child leaves free: how many sub-blocks fewer it has."""
    before, after = sequential_steps(blueprint)
    start = max((place.right for place in child if place), default=MARGIN) + 10
    end = parent[-1].right
    if end - start < 160 or after >= before:
        return
    middle = (start + end) / 2
    line = f"M{start:.1f},{y:.1f}H{middle - 68:.1f}M{middle + 68:.1f},{y:.1f}H{end:.1f}m0,-5v10"
    yield f'<path d="{line}" fill="none" stroke="{palette.FAINT}" stroke-dasharray="3 3"/>'
    yield _text(middle, y + 4, f"{before - after} sub-blocks fewer", anchor="middle")


def _legend(blueprint: Blueprint) -> Iterator[str]:
    entries = [("attention", "attention"), ("ffn", "FFN (height: its width)")]
    if any("linear" in (block.attention, block.ffn) for block in blueprint.parent.blocks):
        entries.append(("linear", "linear"))
    if blueprint.dropped_attentions:
        entries.append(("dropped", "dropped attention"))
    if blueprint.runs:
        entries.append(("fused", "fused FFN"))
    x = WIDTH - MARGIN
    for kind, label in reversed(entries):
        x -= 7.2 * len(label) + 8
        yield _text(x + 16, 14, label)
        yield _draw(Box(x, 11, 11, kind, label), 4.5)
        x -= 14


def _numbers(places: list[Place], y: float) -> Iterator[str]:
    every = 1 if len(places) <= 12 else 5 if len(places) <= 60 else 10
    for i in range(0, len(places), every):
        yield _text((places[i].left + places[i].right) / 2, y, str(i), anchor="middle", size=10.5)


def _bands(
    blueprint: Blueprint, parent: list[Place], child: list[Place | None], top: float, bottom: float
) -> Iterator[str]:
    """From every child block up to the parent blocks it stands for; unchanged neighbours share one band."""
    groups: list[tuple[str, Place, Place, Place, Place]] = []
    identity = Blueprint.identity(blueprint.parent).blocks
    for block, place in zip(blueprint.blocks, child, strict=True):
        first, last = block.parent_blocks
        if place is None:
            continue
        kind = "fused" if block.ffn.kind == "fused" else "same" if block == identity[first] else "changed"
        if kind == "same" and groups and groups[-1][0] == "same":
            groups[-1] = ("same", groups[-1][1], parent[last], groups[-1][3], place)
        else:
            groups.append((kind, parent[first], parent[last], place, place))
    fill = {"fused": (palette.FUSED, 0.28), "changed": (palette.DROPPED, 0.25), "same": (palette.FAINT, 0.12)}
    for kind, from_first, from_last, to_first, to_last in groups:
        colour, opacity = fill[kind]
        points = (
            (from_first.left, top), (from_last.right, top), (to_last.right, bottom), (to_first.left, bottom)
        )  # fmt: skip
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        yield f'<polygon points="{path}" fill="{colour}" fill-opacity="{opacity:g}"/>'


def _run_labels(fused: Sequence[tuple[str, int, Box]], xs: Sequence[float], ceiling: float, y: float) -> Iterator[str]:
    """Below every fused FFN its blocks and width, with a line to it where it doesn't stand right under it."""
    for x, (blocks, width, box) in zip(xs, fused, strict=True):
        foot, at = ceiling + box.height + 2, box.x + box.width / 2
        if y - 14 - foot > 4 or abs(x - at) > 1:
            line = f"M{at:.1f},{foot:.1f}V{max(foot, y - 20):.1f}L{x:.1f},{y - 11:.1f}"
            yield f'<path d="{line}" fill="none" stroke="{palette.FAINT}" stroke-width="0.8"/>'
        yield _text(x, y, blocks, anchor="middle", style=_BOLD)
        yield _text(x, y + 14, f"{width:,} wide", anchor="middle", size=10.5)


def _spread(wanted: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (ascending) where labels don't overlap nor leave the drawing."""
    least = min(82.0, (WIDTH - 2 * MARGIN) / max(len(wanted), 1))
    groups: list[list[float]] = []  # labels that touch move together, around the mean of what they want
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], least) < _start(groups[-2], least) + len(groups[-2]) * least:
            groups[-2:] = [[*groups[-2], *groups[-1]]]
    places: list[float] = []
    for group in groups:
        start = min(_start(group, least), WIDTH - least * (len(group) - 0.5))
        start = max(start, least / 2 if not places else places[-1] + least)
        places += [start + i * least for i in range(len(group))]
    return places


def _start(group: list[float], least: float) -> float:
    return sum(group) / len(group) - (len(group) - 1) / 2 * least
