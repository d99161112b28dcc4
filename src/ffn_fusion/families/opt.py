"""OPT: LayerNorms, learned positions, matrices with biases, no gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.errors import FamilyError
from ffn_fusion.families.family import Family, Names, Shape, SubBlockTensor
from ffn_fusion.families.fields import block_count, flag, whole
from ffn_fusion.families.layer_norm import activation, ffn_tensors, matrix, norm_tensors, with_biases
from ffn_fusion.families.per_block import Modules, PerBlockForm
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

_OFFSET = 2  # transformers' table of positions begins with two rows that no token reads

NAMES = Names(
    embedding="model.decoder.embed_tokens.weight",
    final_norm="model.decoder.final_layer_norm.weight",
    head="lm_head.weight",
    block="model.decoder.layers.{}.",
    inner=with_biases(
        {
            "attention.norm": "self_attn_layer_norm",
            **{f"attention.{key}": f"self_attn.{key}_proj" for key in "qkv"},
            "attention.o": "self_attn.out_proj",
            "ffn.norm": "final_layer_norm",
            "ffn.up": "fc1",
            "ffn.down": "fc2",
        }
    ),
)


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong. FamilyError: norms after the sum, or other than usual."""
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    for key, usual in {
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "word_embed_proj_dim": hidden,
    }.items():
        if (found := config.get(key, usual)) != usual:
            why = ": a block norms its sum with the state, so it adds nothing to it" if found is False else ""
            raise FamilyError(f"config.json: {key} is {found!r}, which isn't supported{why}", "choose another parent")
    block = BlockSpec(AttentionSpec("attention", heads, heads), FfnSpec("plain", whole(config, "ffn_dim")))
    return ModelSpec(
        family="opt",
        hidden_size=hidden,
        heads=heads,
        head_dim=hidden // heads,
        vocab_size=whole(config, "vocab_size"),
        blocks=(block,) * block_count(config),
        tied=flag({"tie_word_embeddings": True, **config}, "tie_word_embeddings"),
        attention_bias=True,
        mlp_bias=True,
        activation=activation({"activation_function": "relu", **config}, "activation_function"),
        norm_eps=1e-5,
        config=config,
        positions=whole(config, "max_position_embeddings", 2048),
    )


def tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """An attention or an FFN, with its norm."""
    if isinstance(part, FfnSpec):
        yield from ffn_tensors(spec, part)
        return
    D = spec.hidden_size
    yield from norm_tensors("attention", D)
    for key in "qkv":
        yield from matrix(f"attention.{key}", D, D, "into", "heads" if key == "q" else "KV heads")
    yield from matrix("attention.o", D, D, "out of", "heads")


def outer(spec: ModelSpec) -> dict[str, Shape]:
    """The table of positions, and the last norm's bias."""
    assert spec.positions
    D, rows = spec.hidden_size, spec.positions + _OFFSET
    return {"model.decoder.embed_positions.weight": (rows, D), "model.decoder.final_layer_norm.bias": (D,)}


FORM = PerBlockForm(
    Modules("self_attn", ("self_attn_layer_norm",)),
    Modules("fc2", ("fc1", "final_layer_norm")),
    width="ffn_dim",
    kv_heads=None,
)
_HEAD_SIZE = "its heads together are as wide as the hidden state, always"

FAMILY = Family("opt", read, NAMES, tensors, outer=outer, form=FORM, refuses={"side by side": _HEAD_SIZE})
