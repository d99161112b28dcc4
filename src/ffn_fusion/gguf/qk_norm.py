"""Models with norms of queries and keys (Qwen3) in llama.cpp: its own ``qwen3``, or ``openelm`` where blocks differ.

llama.cpp's ``qwen3`` takes one number of heads and one FFN width for all blocks. Of its architectures with a number for
each block, ``openelm`` alone computes a Qwen3 block, and it has two limits. Its head is the embedding. And every block
has an attention and an FFN: where one was dropped, zeros are written, an attention of one head or an FFN 32 wide, which
add exactly nothing to the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

Architecture = Literal["qwen3", "openelm"]

FAMILIES = frozenset({"qwen3"})
"""Families whose blocks these architectures compute."""

NO_ATTENTION = AttentionSpec("attention", 1, 1)
"""What is written where a block has no attention: its one query head reads one KV head, all of zeros."""
NO_FFN = FfnSpec("gated", 32)
"""What is written where a block has no FFN: as few channels as quantised rows can have."""


def architecture(spec: ModelSpec) -> Architecture | None:
    """Return the architecture that computes this model; None if it isn't of these families."""
    if spec.family not in FAMILIES:
        return None
    first = spec.blocks[0]
    alike = all(block == first for block in spec.blocks)
    return "qwen3" if alike and first.attention and first.ffn else "openelm"


def sizes(block: BlockSpec) -> tuple[int, int, int]:
    """Return the query heads, KV heads and FFN width that are written for a block."""
    attention = block.attention or NO_ATTENTION
    return attention.heads, attention.kv_heads, (block.ffn or NO_FFN).width


def attention_of_zeros(spec: ModelSpec, block: int) -> Mapping[str, tuple[tuple[int, ...], float]]:
    """Return the shape and the value of each tensor of an attention that adds nothing, by its name in the file.

    Queries, keys and values are zero, and so is the output projection. Norms scale by 1.
    """
    D, d = spec.hidden_size, spec.head_dim
    at = f"blk.{block}."
    return {
        f"{at}attn_norm.weight": ((D,), 1.0),
        f"{at}attn_qkv.weight": ((3 * d, D), 0.0),
        f"{at}attn_q_norm.weight": ((d,), 1.0),
        f"{at}attn_k_norm.weight": ((d,), 1.0),
        f"{at}attn_output.weight": ((D, d), 0.0),
    }


def ffn_of_zeros(spec: ModelSpec, block: int) -> Mapping[str, tuple[tuple[int, ...], float]]:
    """Return the shape and the value of each tensor of an FFN that adds nothing, by its name in the file."""
    D, F = spec.hidden_size, NO_FFN.width
    at = f"blk.{block}."
    return {
        f"{at}ffn_norm.weight": ((D,), 1.0),
        f"{at}ffn_gate.weight": ((F, D), 0.0),
        f"{at}ffn_up.weight": ((F, D), 0.0),
        f"{at}ffn_down.weight": ((D, F), 0.0),
    }
