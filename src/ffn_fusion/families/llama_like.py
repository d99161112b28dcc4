"""Families that differ from Llama in a few places that Nemotron-NAS can't hold, and keep their own form for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.block_lists import no_rotation, upper_windows
from ffn_fusion.families.family import Family, SubBlockTensor
from ffn_fusion.families.fields import block_count, whole
from ffn_fusion.families.llama_shaped import NAMES, common
from ffn_fusion.families.llama_shaped import tensors as llama_tensors
from ffn_fusion.families.per_block import Modules, PerBlockForm
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

FORM = PerBlockForm(Modules("self_attn", ("input_layernorm",)), Modules("mlp", ("post_attention_layernorm",)))


def read(family: str, config: Mapping[str, Any]) -> ModelSpec:
    """Sizes of a model whose config has Llama's fields.

    Raises:
        CheckpointError: a field is missing or wrong.
    """
    fields = common(config)
    kv_heads = whole(config, "num_key_value_heads", fields["heads"])
    if fields["heads"] % kv_heads:
        raise CheckpointError(
            f"config.json: {fields['heads']} heads can't share {kv_heads} key/value heads evenly", "correct the config"
        )
    block = BlockSpec(
        AttentionSpec("attention", kv_heads, fields["heads"]), FfnSpec("gated", whole(config, "intermediate_size"))
    )
    return ModelSpec(family=family, blocks=(block,) * block_count(config), **fields)


def qk_norm_tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """Llama's, and a norm of each head's queries and keys."""
    yield from llama_tensors(spec, part)
    if isinstance(part, AttentionSpec):
        for key in "qk":
            yield SubBlockTensor(f"attention.{key}_norm", (spec.head_dim,), "copied")


def gemma_tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """Llama's; of a norm's scale, what is stored is one less."""
    for tensor in llama_tensors(spec, part):
        yield replace(tensor, plus=1.0) if tensor.role == "norm scale" else tensor


QK_NAMES = replace(
    NAMES, inner={**NAMES.inner, **{f"attention.{key}_norm": f"self_attn.{key}_norm.weight" for key in "qk"}}
)

FAMILIES = (
    Family(
        "qwen3",
        partial(read, "qwen3"),
        QK_NAMES,
        qk_norm_tensors,
        usual={"num_key_value_heads": 32, "head_dim": 128},
        form=FORM,
        lists=upper_windows,
        refuses={"side by side": "each attention has norms of its own for queries and keys"},
    ),
    Family(
        "smollm3",
        partial(read, "smollm3"),
        NAMES,
        llama_tensors,
        usual={"num_key_value_heads": 4, "tie_word_embeddings": True},
        form=FORM,
        lists=no_rotation,
    ),
    Family(
        "gemma",
        partial(read, "gemma"),
        NAMES,
        gemma_tensors,
        usual={
            "hidden_act": "gelu_pytorch_tanh",
            "num_key_value_heads": 16,
            "head_dim": 256,
            "tie_word_embeddings": True,
        },
        form=FORM,
    ),
)
