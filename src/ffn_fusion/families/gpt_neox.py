"""GPT-NeoX and Pythia: LayerNorms; in most, attention and FFN of a block side by side: x + Attn(n1(x)) + FFN(n2(x))."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.families.family import PACKED, Family, Names, Shape, SubBlockTensor
from ffn_fusion.families.fields import block_count, flag, number, whole
from ffn_fusion.families.layer_norm import activation, ffn_tensors, masks, matrix, norm_tensors, with_biases
from ffn_fusion.families.per_block import Modules, PerBlockForm
from ffn_fusion.families.rewriting import Piece
from ffn_fusion.families.rotary import check_rotary
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

NAMES = Names(
    embedding="gpt_neox.embed_in.weight",
    final_norm="gpt_neox.final_layer_norm.weight",
    head="lm_head.weight",
    block="gpt_neox.layers.{}.",
    inner=with_biases(
        {
            "attention.norm": "input_layernorm",
            "attention.qkv": "attention.query_key_value",
            "attention.o": "attention.dense",
            "ffn.norm": "post_attention_layernorm",
            "ffn.up": "mlp.dense_h_to_4h",
            "ffn.down": "mlp.dense_4h_to_h",
        }
    ),
)


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong."""
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    # Checkpoints call the head by its old name, transformers' class by the new one, and so do children.
    pieces = {NAMES.head: Piece("embed_out.weight")} if config["model_type"] == "gpt_neox" else {}
    check_rotary(config)
    block = BlockSpec(AttentionSpec("attention", heads, heads), FfnSpec("plain", whole(config, "intermediate_size")))
    blocks = block_count(config)
    return ModelSpec(
        family="gpt_neox",
        hidden_size=hidden,
        heads=heads,
        head_dim=hidden // heads,
        vocab_size=whole(config, "vocab_size"),
        blocks=(block,) * blocks,
        tied=flag(config, "tie_word_embeddings"),
        attention_bias=flag({"attention_bias": True, **config}, "attention_bias"),
        mlp_bias=True,
        activation=activation({"hidden_act": "gelu", **config}, "hidden_act"),
        norm_eps=number(config, "layer_norm_eps", 1e-5),
        config=config,
        unread=masks(NAMES, blocks, "attention.bias", "attention.masked_bias"),
        side_by_side=flag({"use_parallel_residual": True, **config}, "use_parallel_residual"),
        pieces=pieces,
    )


def tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """An attention with Q, K and V interleaved head by head, or an FFN, with its norm."""
    if isinstance(part, FfnSpec):
        yield from ffn_tensors(spec, part)
        return
    D = spec.hidden_size
    yield from norm_tensors("attention", D)
    yield from matrix("attention.qkv", 3 * D, D, "into", None, bias=spec.attention_bias)
    yield from matrix("attention.o", D, D, "out of", "heads", bias=spec.attention_bias)


def outer(spec: ModelSpec) -> dict[str, Shape]:
    """The last norm's bias."""
    return {"gpt_neox.final_layer_norm.bias": (spec.hidden_size,)}


FORM = PerBlockForm(
    Modules("attention", ("input_layernorm",)), Modules("mlp", ("post_attention_layernorm",)), kv_heads=None
)
FAMILY = Family(
    "gpt_neox",
    read,
    NAMES,
    tensors,
    outer=outer,
    form=FORM,
    refuses={"side by side": PACKED},
)
