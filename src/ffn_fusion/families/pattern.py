"""A model written down as a list of its blocks, for one that isn't here as a checkpoint: sizes and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

Pattern = tuple[int | Literal["linear"] | None, int | Literal["linear"] | None]
"""A block: its attention's K/V heads, its FFN's width. None: the block has none; ``"linear"``: one layer [D, D]."""


def pattern_spec(
    blocks: Iterable[Pattern], *, hidden_size: int, heads: int, vocab_size: int, tied: bool = False
) -> ModelSpec:
    """The model whose blocks these are. D = hidden_size, no biases, head_dim D / heads."""
    return ModelSpec(
        family="nemotron-nas",
        hidden_size=hidden_size,
        heads=heads,
        head_dim=hidden_size // heads,
        vocab_size=vocab_size,
        blocks=tuple(BlockSpec(_attention(attention, heads), _ffn(ffn)) for attention, ffn in blocks),
        tied=tied,
        attention_bias=False,
        mlp_bias=False,
        activation="silu",
        norm_eps=1e-5,
        config={},
    )


def _attention(attention: int | Literal["linear"] | None, heads: int) -> AttentionSpec | None:
    if attention == "linear":
        return AttentionSpec("linear", 0, 0)
    return AttentionSpec("attention", attention, heads) if attention else None


def _ffn(ffn: int | Literal["linear"] | None) -> FfnSpec | None:
    if ffn == "linear":
        return FfnSpec("linear", 0)
    return FfnSpec("gated", ffn) if ffn else None
