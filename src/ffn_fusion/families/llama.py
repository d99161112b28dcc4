"""Llama: every block is attention + gated FFN, all alike. X + Attn(n1(X)), then + FFN(n2(.))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.family import Family
from ffn_fusion.families.fields import block_count, whole, without_foreign_pad
from ffn_fusion.families.llama_shaped import NAMES, common, tensors
from ffn_fusion.families.rotary import rotary_settings, tidy_rotary
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

_REPLACED = ("architectures", "model_type", "auto_map", "block_configs", "qkv_bias")


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong."""
    fields = common(config)
    heads = fields["heads"]
    kv_heads = whole(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: {heads} heads can't share {kv_heads} key/value heads evenly", "correct the config"
        )
    block = BlockSpec(
        attention=AttentionSpec("attention", kv_heads, heads),
        ffn=FfnSpec("gated", whole(config, "intermediate_size")),
    )
    return ModelSpec(family="llama", blocks=(block,) * block_count(config), **fields)


def write(spec: ModelSpec, width_multiple: int) -> dict[str, Any]:
    """config.json of a model whose blocks are all alike, with the rest of its config (token ids, dtype) passed on.

    Rotary settings stand in both spellings, as in a child.
    """
    first = spec.blocks[0]
    assert all(block == first for block in spec.blocks)
    assert not spec.qkv_bias, "a Llama has biases on all four matrices of an attention, or on none"
    return config_of(spec, first)


def config_of(spec: ModelSpec, block: BlockSpec) -> dict[str, Any]:
    """config.json of a Llama whose blocks are like this one, with the rest of the model's config passed on."""
    assert block.attention is not None
    assert block.ffn is not None
    carried = without_foreign_pad(spec.config, spec.vocab_size)
    config = {key: value for key, value in carried.items() if key not in _REPLACED}
    plain = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config,
        **rotary_settings(spec.config),
        "hidden_size": spec.hidden_size,
        "intermediate_size": block.ffn.width,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": block.attention.heads,
        "num_key_value_heads": block.attention.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "hidden_act": spec.activation,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.mlp_bias,
    }
    return tidy_rotary(plain)


FAMILY = Family("llama", read, NAMES, tensors, writer=write)
