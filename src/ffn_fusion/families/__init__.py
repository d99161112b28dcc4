"""Facts: what a block of each model family is made of, and what can't be fused and why. No torch."""

from ffn_fusion.families.family import Family
from ffn_fusion.families.registry import child_family, family_of, names_of, read_spec, require
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

__all__ = [
    "AttentionSpec",
    "BlockSpec",
    "Family",
    "FfnSpec",
    "ModelSpec",
    "child_family",
    "family_of",
    "names_of",
    "read_spec",
    "require",
]
