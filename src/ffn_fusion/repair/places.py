"""Where a child is repaired: the FFNs of the blocks that surgery changed, and of some blocks behind. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ffn_fusion.blueprint import Block, Blueprint

Why = Literal["fused", "attention dropped", "behind"]


@dataclass(frozen=True)
class Place:
    """The FFN of child block ``block``, which ends where parent block ``parent_last`` ends."""

    block: int
    parent_last: int
    why: Why


def places(blueprint: Blueprint, horizon: int = 0) -> tuple[Place, ...]:
    """In the order of the child's blocks.

    Args:
        horizon: as many unchanged blocks behind a changed one take part, to absorb what's left.
    """
    found, near = [], 0
    for k, block in enumerate(blueprint.kept_blocks):
        why: Why | None = _why(block, blueprint)
        if why:
            near = horizon
        elif near and block.ffn.kind != "none":
            near, why = near - 1, "behind"
        if why and block.ffn.kind != "none" and _gated(block, blueprint):
            found.append(Place(k, block.parent_blocks[1], why))
    return tuple(found)


def _why(block: Block, blueprint: Blueprint) -> Why | None:
    if block.ffn.kind == "fused":
        return "fused"
    first, last = block.parent_blocks
    had = any(blueprint.parent.blocks[i].attention for i in range(first, last + 1))
    return "attention dropped" if had and block.attention.kind == "none" else None


def _gated(block: Block, blueprint: Blueprint) -> bool:
    return all(blueprint.parent.blocks[source].ffn == "gated" for source in block.ffn.sources)
