"""The ways to make a sub-block of a child from sub-blocks of its parent: one class a kind, found by its ``kind`` word.

A new kind is a class here, a transform in ``surgery`` that makes its tensors, and the tests of both.
"""

from ffn_fusion.blueprint.kinds.fused import FusedFfn, FusionNorm
from ffn_fusion.blueprint.kinds.kept import KeptSubBlock, NoSubBlock
from ffn_fusion.blueprint.kinds.kind import KINDS, NAMES, Kind, Operation, PlannedAttention, PlannedFfn, register_kind
from ffn_fusion.blueprint.kinds.linear import LinearSubBlock
from ffn_fusion.blueprint.kinds.narrowed import NarrowedFfn
from ffn_fusion.blueprint.kinds.pooled import PooledAttention
from ffn_fusion.blueprint.kinds.wide import WideAttention

__all__ = [
    "KINDS",
    "NAMES",
    "FusedFfn",
    "FusionNorm",
    "KeptSubBlock",
    "Kind",
    "LinearSubBlock",
    "NarrowedFfn",
    "NoSubBlock",
    "Operation",
    "PlannedAttention",
    "PlannedFfn",
    "PooledAttention",
    "WideAttention",
    "register_kind",
]
