"""Llama: every block is attention + gated FFN, all alike. X + Attn(n1(X)), then + FFN(n2(.))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.fields import block_count, common, whole
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

MODEL_TYPES = ("llama",)


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong."""
    fields = common(config)
    heads = fields["heads"]
    kv_heads = whole(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: {heads} heads can't share {kv_heads} key/value heads evenly", "mend the config"
        )
    block = BlockSpec(
        attention=AttentionSpec("attention", kv_heads),
        ffn=FfnSpec("gated", whole(config, "intermediate_size")),
    )
    return ModelSpec(family="llama", blocks=(block,) * block_count(config), **fields)
