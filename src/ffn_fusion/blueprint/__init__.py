"""The decision: what every block of the child is made of, and the edits that lead there. No torch."""

from ffn_fusion.blueprint.blocks import (
    Block,
    Blueprint,
    FusedFfn,
    FusionNorm,
    KeptSubBlock,
    NarrowedFfn,
    NoSubBlock,
    Parent,
    ParentBlock,
)
from ffn_fusion.blueprint.edits import apply, drop_attention, fuse_run, narrow_ffn, split_run, unfused

__all__ = [
    "Block",
    "Blueprint",
    "FusedFfn",
    "FusionNorm",
    "KeptSubBlock",
    "NarrowedFfn",
    "NoSubBlock",
    "Parent",
    "ParentBlock",
    "apply",
    "drop_attention",
    "fuse_run",
    "narrow_ffn",
    "split_run",
    "unfused",
]
