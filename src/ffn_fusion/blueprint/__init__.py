"""The decision: what every block of the child is made of, and the edits that lead there. No torch."""

from ffn_fusion.blueprint.blocks import Block, Parent
from ffn_fusion.blueprint.blueprint import Blueprint
from ffn_fusion.blueprint.kinds import (
    NAMES,
    FusedFfn,
    FusionNorm,
    KeptSubBlock,
    Kind,
    LinearSubBlock,
    NarrowedFfn,
    NoSubBlock,
    Operation,
    PooledAttention,
    WideAttention,
)
from ffn_fusion.blueprint.sub_blocks import PARTS, AttentionSpec, BlockSpec, FfnSpec, Part, SubBlock

__all__ = [
    "NAMES",
    "PARTS",
    "AttentionSpec",
    "Block",
    "BlockSpec",
    "Blueprint",
    "FfnSpec",
    "FusedFfn",
    "FusionNorm",
    "KeptSubBlock",
    "Kind",
    "LinearSubBlock",
    "NarrowedFfn",
    "NoSubBlock",
    "Operation",
    "Parent",
    "Part",
    "PooledAttention",
    "SubBlock",
    "WideAttention",
]
