"""Where a child is repaired: output projections of blocks that surgery changed, and of some after them. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ffn_fusion.blueprint import Block, Blueprint, Part

Why = str
"""Why a place is repaired: what became of its FFN or its attention, or ``after a change``."""


@dataclass(frozen=True)
class Place:
    """An output projection of child block ``block``. Its goal is the parent's state after the same sub-block: after the
    FFN of parent block ``parent_last``, where the child's block ends, or after its attention.
    """

    block: int
    parent_last: int
    why: Why
    part: Part = "ffn"

    @property
    def name(self) -> str:
        """The place in few words: ``ffn of block 5``."""
        return f"{self.part} of block {self.block}"


def places(blueprint: Blueprint, horizon: int = 0, *, attention: bool = False) -> tuple[Place, ...]:
    """Return the places to repair, in the order of the child's sub-blocks.

    Args:
        horizon: the number of unchanged blocks after each changed one that take part, to absorb what is left.
        attention: also repair the attentions of those blocks.
    """
    found: list[Place] = []
    near = 0
    for k, block in enumerate(blueprint.kept_blocks):
        why: Why | None = _why(block, blueprint)
        if why:
            near = horizon
        elif near:
            near, why = near - 1, "after a change"
        if why:
            found += _of_block(k, block, blueprint, why, attention)
    return tuple(found)


def _of_block(k: int, block: Block, blueprint: Blueprint, why: Why, attention: bool) -> list[Place]:
    found = []
    if attention and block.attention.present:
        found.append(Place(k, block.attention.sources[-1], why, "attention"))
    if block.ffn.present:
        found.append(Place(k, block.parent_blocks[1], why))
    return found


def _why(block: Block, blueprint: Blueprint) -> Why | None:
    if block.ffn.present and block.ffn.changes:
        return block.ffn.fate
    if block.attention.present and block.attention.changes:
        return block.attention.fate
    first, last = block.parent_blocks
    had = any(blueprint.parent.blocks[i].attention for i in range(first, last + 1))
    if had and not block.attention.present:
        return "attention dropped"
    had_ffn = any(blueprint.parent.blocks[i].ffn for i in range(first, last + 1))
    return "FFN dropped" if had_ffn and not block.ffn.present else None
