"""Where the boxes of a blueprint's drawing stand (see ``blocks_svg``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from ffn_fusion.blueprint import Block, Blueprint, ParentBlock
from ffn_fusion.blueprint.ranges import format_blocks

WIDTH, MARGIN = 1120.0, 10.0
_TALLEST, _USUAL = 170.0, 32.0
_ATTENTION_STEP, _FFN_STEP, _GAP = 0.85, 1.0, 0.35
"""Widths of the boxes and of the gap between blocks, in units of an FFN."""


@dataclass(frozen=True)
class Box:
    x: float
    width: float
    height: float
    kind: str
    says: str
    seams: tuple[float, ...] = ()
    """Where the FFNs meet that a fused one is made of, from its top."""


@dataclass(frozen=True)
class Place:
    """Where a block (of parent or child) stands: its boxes, and its left and right edge."""

    left: float
    right: float
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Scale:
    unit: float
    per_width: float
    plain: float
    """Height of what has no width: attentions and linear layers."""
    tallest_plain: float
    """Height of the tallest box that isn't fused."""

    def ffn(self, width: int) -> float:
        return max(width * self.per_width, 4.0) if width else self.plain

    @property
    def fused_width(self) -> float:
        return max(self.unit * _FFN_STEP, 13.0)  # wide enough to be seen among 126 blocks


def scale_of(blueprint: Blueprint) -> Scale:
    parent = blueprint.parent.blocks
    units = sum(_GAP + _ATTENTION_STEP * bool(b.attention) + _FFN_STEP * bool(b.ffn) for b in parent)
    unit = min((WIDTH - 2 * MARGIN) / max(units, 1), 26.0)
    widths = sorted(block.ffn_width for block in parent if block.ffn_width) or [1]
    widest = max([*(blueprint.width(block) for block in blueprint.blocks), widths[-1]])
    per_width = min(_USUAL / widths[len(widths) // 2], _TALLEST / widest)
    plain = max(0.7 * widths[len(widths) // 2] * per_width, 8.0)
    return Scale(unit, per_width, plain, max(plain, widths[-1] * per_width))


def parent_places(blueprint: Blueprint, scale: Scale) -> list[Place]:
    dropped = set(blueprint.dropped_attentions)
    places, x = [], MARGIN
    for i, block in enumerate(blueprint.parent.blocks):
        boxes = list(_parent_boxes(i, block, x, scale, i in dropped))
        right = boxes[-1].x + boxes[-1].width if boxes else x
        places.append(Place(x, right, tuple(boxes)))
        x = right + _GAP * scale.unit
    return places


def _parent_boxes(i: int, block: ParentBlock, x: float, scale: Scale, dropped: bool) -> Iterator[Box]:
    width = _ATTENTION_STEP * scale.unit
    if block.attention:
        kind = "dropped" if dropped else "attention" if block.attention == "attention" else "linear"
        yield Box(x, width, scale.plain, kind, f"block {i}: {block.attention}{', dropped' if dropped else ''}")
        x += width
    if block.ffn:
        kind = "ffn" if block.ffn == "gated" else "linear"
        says = f"block {i}: FFN {block.ffn_width:,} wide" if block.ffn_width else f"block {i}: linear FFN"
        yield Box(x, _FFN_STEP * scale.unit, scale.ffn(block.ffn_width), kind, says)


def child_places(blueprint: Blueprint, scale: Scale) -> list[Place | None]:
    """One a child block; None for a block that is gone altogether."""
    places: list[Place | None] = []
    x = MARGIN
    number = 0
    for block in blueprint.blocks:
        if block.empty:
            places.append(None)
            continue
        boxes = list(_child_boxes(blueprint, block, number, x, scale))
        places.append(Place(x, boxes[-1].x + boxes[-1].width, tuple(boxes)))
        x = boxes[-1].x + boxes[-1].width + _GAP * scale.unit
        number += 1
    return places


def _child_boxes(blueprint: Blueprint, block: Block, number: int, x: float, scale: Scale) -> Iterator[Box]:
    parent = blueprint.parent.blocks
    first, last = block.parent_blocks
    name = f"child block {number} (parent {format_blocks(range(first, last + 1))})"
    for source in block.attention.sources:
        kind = "attention" if parent[source].attention == "attention" else "linear"
        yield Box(x, _ATTENTION_STEP * scale.unit, scale.plain, kind, f"{name}: {parent[source].attention}")
        x += _ATTENTION_STEP * scale.unit
    if block.ffn.kind == "none":
        return
    width = blueprint.width(block)
    fused = block.ffn.kind == "fused"
    if not fused:
        says = f"{name}: FFN {width:,} wide" if width else f"{name}: linear FFN"
        says += f", narrowed from {parent[block.ffn.source].ffn_width:,}" if block.ffn.kind == "narrowed" else ""
        yield Box(x, _FFN_STEP * scale.unit, scale.ffn(width), "ffn" if width else "linear", says)
        return
    says = f"{name}: {len(block.ffn.sources)} FFNs fused, {width:,} wide"
    ends = accumulate(parent[source].ffn_width for source in block.ffn.sources)
    seams = tuple(end / width * scale.ffn(width) for end in ends)[:-1]
    yield Box(x, scale.fused_width, scale.ffn(width), "fused", says, seams)
