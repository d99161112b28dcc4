"""Sizes of a child that isn't built: blueprint + the parent's sizes -> the child's. No weights, no torch."""

from __future__ import annotations

from dataclasses import replace

from ffn_fusion.blueprint import Block, Blueprint, Part, SubBlock
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families.block_lists import cut_lists
from ffn_fusion.families.registry import in_child_form
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec


def child_spec(parent: ModelSpec, blueprint: Blueprint, width_multiple: int) -> ModelSpec:
    """The child's sizes; blocks that are left empty are gone, FFNs are padded to ``width_multiple``.

    Raises:
        BlueprintError: a sub-block can't be made of the parent's, e.g. 3 KV heads of its 2.
        FamilyError: no form holds the child.
    """
    kept = blueprint.kept_blocks
    blocks = tuple(block_spec(parent, block, width_multiple) for block in kept)
    # A block's place in the parent is that of its attention, on which the lists of transformers' configs bear.
    places = [block.attention.sources[0] if block.attention.present else block.parent_blocks[0] for block in kept]
    config = cut_lists(parent.config, places, [block.attention is not None for block in blocks])
    return in_child_form(replace(parent, blocks=blocks, config=config))


def block_spec(parent: ModelSpec, block: Block, width_multiple: int) -> BlockSpec:
    """Return the sizes of one block of a child. Raises: BlueprintError: it can't be made of the parent's."""
    attention, ffn = _sub_block(parent, block, "attention"), _sub_block(parent, block, "ffn")
    assert isinstance(attention, AttentionSpec | None)
    assert isinstance(ffn, FfnSpec | None)
    return BlockSpec(attention, ffn.padded(width_multiple) if ffn else None)


def _sub_block(parent: ModelSpec, block: Block, part: Part) -> SubBlock | None:
    kind = block.part(part)
    had = parent.had(part, kind.sources)
    try:
        kind.check(had)  # a blueprint leaves out numbers of heads that all its parent's attentions have
    except ValueError as error:
        raise BlueprintError(str(error), "change the blueprint") from None
    return kind.sizes(had)
