"""Tensor names and shapes of a Llama-shaped model: one table, asked by the reader, the surgery and the writer.

Shapes: D hidden, F FFN width, H heads, K KV heads, d head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ffn_fusion.families.spec import AttentionSpec, FfnSpec, ModelSpec

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
ATTENTION_NORM = "input_layernorm.weight"
FFN_NORM = "post_attention_layernorm.weight"

Shape = tuple[int, ...]


def block_prefix(block: int) -> str:
    return f"model.layers.{block}."


def attention_tensors(spec: ModelSpec, attention: AttentionSpec) -> Iterator[tuple[str, Shape]]:
    """Names (inside the block) and shapes of an attention sub-block with its norm."""
    D, d = spec.hidden_size, spec.head_dim
    yield ATTENTION_NORM, (D,)
    if attention.kind == "linear":
        yield "self_attn.linear_attn.weight", (D, D)
        return
    sizes = {
        "q_proj": (spec.heads * d, D),
        "k_proj": (attention.kv_heads * d, D),
        "v_proj": (attention.kv_heads * d, D),
        "o_proj": (D, spec.heads * d),
    }
    for name, shape in sizes.items():
        yield f"self_attn.{name}.weight", shape
        if spec.attention_bias:
            yield f"self_attn.{name}.bias", shape[:1]


def ffn_tensors(spec: ModelSpec, ffn: FfnSpec) -> Iterator[tuple[str, Shape]]:
    """Names (inside the block) and shapes of an FFN sub-block with its norm."""
    D, F = spec.hidden_size, ffn.width
    yield FFN_NORM, (D,)
    if ffn.kind == "linear":
        yield "mlp.linear_mlp.weight", (D, D)
        return
    for name, shape in {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}.items():
        yield f"mlp.{name}.weight", shape
        if spec.mlp_bias:
            yield f"mlp.{name}.bias", shape[:1]


def sub_block_parameters(spec: ModelSpec, part: AttentionSpec | FfnSpec | None) -> int:
    """Parameters of an attention or an FFN, with its norm."""
    if part is None:
        return 0
    tensors = attention_tensors(spec, part) if isinstance(part, AttentionSpec) else ffn_tensors(spec, part)
    return sum(prod(shape) for _, shape in tensors)


def head_parameters(spec: ModelSpec) -> int:
    """Parameters of the output head: read whole for every step, while of the embedding a row a token is."""
    return spec.vocab_size * spec.hidden_size


def model_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor of the model with its shape, in the order a forward pass needs them."""
    tensors: dict[str, Shape] = {EMBEDDING: (spec.vocab_size, spec.hidden_size)}
    for i, block in enumerate(spec.blocks):
        if block.attention:
            tensors |= {block_prefix(i) + name: shape for name, shape in attention_tensors(spec, block.attention)}
        if block.ffn:
            tensors |= {block_prefix(i) + name: shape for name, shape in ffn_tensors(spec, block.ffn)}
    tensors[FINAL_NORM] = (spec.hidden_size,)
    if not spec.tied:
        tensors[LM_HEAD] = (spec.vocab_size, spec.hidden_size)
    return tensors


def ignorable(spec: ModelSpec, name: str) -> bool:
    """Tensors that some checkpoints carry and no model reads: rotary tables, a tied head written out again."""
    return name.endswith("rotary_emb.inv_freq") or (spec.tied and name == LM_HEAD)
