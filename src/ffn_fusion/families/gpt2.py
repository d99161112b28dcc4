"""GPT-2: LayerNorms, learned positions, matrices stored as [in, out]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.errors import FamilyError
from ffn_fusion.families.family import PACKED, Family, Names, Shape, SubBlockTensor
from ffn_fusion.families.fields import flag, number, whole
from ffn_fusion.families.layer_norm import activation, ffn_tensors, masks, matrix, norm_tensors, with_biases
from ffn_fusion.families.per_block import Modules, PerBlockForm
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

NAMES = Names(
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f.weight",
    head="lm_head.weight",
    block="transformer.h.{}.",
    inner=with_biases(
        {
            "attention.norm": "ln_1",
            "attention.qkv": "attn.c_attn",
            "attention.o": "attn.c_proj",
            "ffn.norm": "ln_2",
            "ffn.up": "mlp.c_fc",
            "ffn.down": "mlp.c_proj",
        }
    ),
)


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong. FamilyError: attention that depends on a block's number."""
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise FamilyError(
            "config.json: scale_attn_by_inverse_layer_idx: attention depends on a block's number, which changes",
            "choose another parent",
        )
    hidden, heads = whole(config, "n_embd"), whole(config, "n_head")
    block = BlockSpec(AttentionSpec("attention", heads, heads), FfnSpec("plain", whole(config, "n_inner", 4 * hidden)))
    blocks = whole(config, "n_layer", limit=1 << 14)
    return ModelSpec(
        family="gpt2",
        hidden_size=hidden,
        heads=heads,
        head_dim=hidden // heads,
        vocab_size=whole(config, "vocab_size"),
        blocks=(block,) * blocks,
        tied=flag({"tie_word_embeddings": True, **config}, "tie_word_embeddings"),
        attention_bias=True,
        mlp_bias=True,
        activation=activation({"activation_function": "gelu_new", **config}, "activation_function"),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        config=config,
        positions=whole(config, "n_positions", 1024),
        unread=masks(NAMES, blocks, "attn.bias", "attn.masked_bias"),
    )


def tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """An attention with Q, K and V in one matrix, or an FFN, with its norm."""
    if isinstance(part, FfnSpec):
        yield from ffn_tensors(spec, part, transposed=True)
        return
    D = spec.hidden_size
    yield from norm_tensors("attention", D)
    yield from matrix("attention.qkv", 3 * D, D, "into", None, transposed=True)
    yield from matrix("attention.o", D, D, "out of", "heads", transposed=True)


def outer(spec: ModelSpec) -> dict[str, Shape]:
    """The table of positions, and the last norm's bias."""
    assert spec.positions
    D = spec.hidden_size
    return {"transformer.wpe.weight": (spec.positions, D), "transformer.ln_f.bias": (D,)}


FORM = PerBlockForm(
    Modules("attn", ("ln_1",)), Modules("mlp", ("ln_2",)), width="n_inner", kv_heads=None, blocks="n_layer"
)
FAMILY = Family("gpt2", read, NAMES, tensors, outer=outer, form=FORM, refuses={"side by side": PACKED})
