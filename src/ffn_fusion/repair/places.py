"""Where a child is repaired: output projections of the blocks that surgery changed, and of some behind. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.families.layout import block_prefix

Part = Literal["attention", "ffn"]
Why = Literal["fused", "narrowed", "attention dropped", "FFN dropped", "behind"]

_PROJECTION = {"attention": "self_attn.o_proj", "ffn": "mlp.down_proj"}


@dataclass(frozen=True)
class Place:
    """An output projection of child block ``block``, whose state is to be the parent's behind the same sub-block:
    the FFN of parent block ``parent_last``, where the child's block ends, or its attention.
    """

    block: int
    parent_last: int
    why: Why
    part: Part = "ffn"

    @property
    def module(self) -> str:
        """The projection's name in the child: with ``.weight`` behind it, its matrix."""
        return block_prefix(self.block) + _PROJECTION[self.part]


def places(blueprint: Blueprint, horizon: int = 0, *, attention: bool = False) -> tuple[Place, ...]:
    """In the order of the child's sub-blocks.

    Args:
        horizon: as many unchanged blocks behind a changed one take part, to absorb what's left.
        attention: the attentions of those blocks take part as well.
    """
    found: list[Place] = []
    near = 0
    for k, block in enumerate(blueprint.kept_blocks):
        why: Why | None = _why(block, blueprint)
        if why:
            near = horizon
        elif near:
            near, why = near - 1, "behind"
        if why:
            found += _of_block(k, block, blueprint, why, attention)
    return tuple(found)


def _of_block(k: int, block: Block, blueprint: Blueprint, why: Why, attention: bool) -> list[Place]:
    found = []
    if attention and block.attention.kind == "kept" and _softmax(block.attention.source, blueprint):
        found.append(Place(k, block.attention.source, why, "attention"))
    if block.ffn.kind != "none" and all(blueprint.parent.blocks[source].ffn == "gated" for source in block.ffn.sources):
        found.append(Place(k, block.parent_blocks[1], why))
    return found


def _why(block: Block, blueprint: Blueprint) -> Why | None:
    if block.ffn.kind == "fused":
        return "fused"
    if block.ffn.kind == "narrowed":
        return "narrowed"
    first, last = block.parent_blocks
    had = any(blueprint.parent.blocks[i].attention for i in range(first, last + 1))
    if had and block.attention.kind == "none":
        return "attention dropped"
    had_ffn = any(blueprint.parent.blocks[i].ffn for i in range(first, last + 1))
    return "FFN dropped" if had_ffn and block.ffn.kind == "none" else None


def _softmax(source: int, blueprint: Blueprint) -> bool:
    return blueprint.parent.blocks[source].attention == "attention"
