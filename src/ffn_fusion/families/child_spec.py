"""Sizes of a child that isn't built: blueprint + the parent's sizes -> the child's. No weights, no torch."""

from __future__ import annotations

from dataclasses import replace

from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec


def padded_width(blueprint: Blueprint, block: Block, width_multiple: int) -> int:
    """FFN width of a child block with the zero channels that round it up."""
    return -(-blueprint.width(block) // width_multiple) * width_multiple


def child_spec(parent: ModelSpec, blueprint: Blueprint, width_multiple: int) -> ModelSpec:
    """The child's sizes; blocks that are left empty are gone, FFNs are padded to ``width_multiple``."""
    blocks = tuple(_block(parent, blueprint, block, width_multiple) for block in blueprint.kept_blocks)
    return replace(parent, family="nemotron-nas", blocks=blocks)


def _block(parent: ModelSpec, blueprint: Blueprint, block: Block, width_multiple: int) -> BlockSpec:
    attention: AttentionSpec | None = None
    if block.attention.kind == "kept":
        attention = parent.blocks[block.attention.source].attention
    ffn: FfnSpec | None = None
    width = padded_width(blueprint, block, width_multiple)
    if block.ffn.kind in ("fused", "narrowed"):
        ffn = FfnSpec("gated", width)
    elif block.ffn.kind == "kept":
        ffn = parent.blocks[block.ffn.source].ffn
        if ffn and ffn.kind == "gated":
            ffn = FfnSpec("gated", width)
    return BlockSpec(attention, ffn)
