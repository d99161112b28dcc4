"""A Llama whose attentions differ in their number of query heads: blocks side by side beside others.

Nemotron-NAS has one number of query heads for all blocks. Such a model keeps Llama's own form with a section a block;
with biases on Q, K and V alone it's a Qwen2, of whose attentions transformers' Llama has no equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import gcd
from typing import Any

from ffn_fusion.errors import FamilyError
from ffn_fusion.families import llama, qwen2
from ffn_fusion.families.family import Family
from ffn_fusion.families.llama_like import FORM
from ffn_fusion.families.llama_shaped import NAMES, tensors
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

NAME = "llama-per-block"


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong."""
    return replace(llama.read(config), family=NAME)


def in_own_form(spec: ModelSpec) -> ModelSpec:
    """A model whose blocks differ, from Nemotron-NAS or a Llama, in the form that says the heads of each block.

    Raises:
        FamilyError: biases that neither Llama nor Qwen2 has.
    """
    if any(part and part.kind == "linear" for block in spec.blocks for part in (block.attention, block.ffn)):
        raise FamilyError(
            "no form holds linear layers and attentions with different numbers of heads in one child",
            "leave out the linear layers, or the blocks side by side",
        )
    as_qwen2 = spec.qkv_bias and not spec.attention_bias
    if as_qwen2 and spec.mlp_bias:
        raise FamilyError(
            "blocks side by side: no model has biases on Q, K, V and the FFN and none on the attention's output",
            "`ffn-fusion export --to llama` gives the output a bias of zeros",
        )
    width = next((block.ffn_width for block in spec.blocks if block.ffn_width), spec.hidden_size)
    kv_heads = min(block.attention.kv_heads for block in spec.blocks if block.attention)
    usual = BlockSpec(AttentionSpec("attention", gcd(kv_heads, spec.heads), spec.heads), FfnSpec("gated", width))
    config = llama.config_of(spec, usual)
    if as_qwen2:
        config |= {"model_type": "qwen2", "qkv_bias": True, "use_sliding_window": False}
        return replace(spec, family=qwen2.FAMILY.name, config=config)
    return replace(spec, family=NAME, config=config)


FAMILY = Family(NAME, read, NAMES, tensors, form=FORM)
