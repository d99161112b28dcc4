"""Depths at which child and parent can be compared, and the blocks that surgery touched. No torch.

A child block ends where the last parent block that it replaces ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from ffn_fusion.blueprint import Blueprint


@dataclass(frozen=True)
class Depth:
    """The state after child block ``child`` should match the parent's state after its block ``parent``."""

    child: int
    parent: int


def matched_depths(blueprint: Blueprint) -> tuple[Depth, ...]:
    """Return one depth for every block of the child, in order."""
    return tuple(Depth(k, block.parent_blocks[1]) for k, block in enumerate(blueprint.kept_blocks))


def touched_blocks(blueprint: Blueprint) -> tuple[int, ...]:
    """Return the child's blocks that surgery changed, and the neighbours of changed or removed blocks."""
    kept, identity = blueprint.kept_blocks, Blueprint.identity(blueprint.parent)
    near: set[int] = set()
    end = -1
    for k, block in enumerate(kept):
        first, last = block.parent_blocks
        if first != end + 1:
            near |= {k - 1, k}
        if first != last or block != identity.blocks[first]:
            near |= {k - 1, k, k + 1}
        end = last
    if end != len(identity.blocks) - 1:
        near.add(len(kept) - 1)
    return tuple(k for k in sorted(near) if 0 <= k < len(kept))
