"""Facts: what a block of each model family is made of, and what can't be fused and why. No torch."""

from ffn_fusion.families.registry import read_spec
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

__all__ = ["AttentionSpec", "BlockSpec", "FfnSpec", "ModelSpec", "read_spec"]
