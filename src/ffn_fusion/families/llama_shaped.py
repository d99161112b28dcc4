"""What Llama-shaped families share: config fields, the tensors of a sub-block, and what Llama calls them.

Shapes: D hidden, F FFN width, H heads, K KV heads, d head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.family import Along, Names, Role, SubBlockTensor
from ffn_fusion.families.fields import flag, number, whole
from ffn_fusion.families.rotary import check_rotary
from ffn_fusion.families.spec import AttentionSpec, FfnSpec, ModelSpec

ELEMENTWISE = frozenset({"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "sigmoid", "tanh"})
"""Activations that act on every channel alone and map 0 to a finite number, so that zero channels add nothing."""

NAMES = Names(
    embedding="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    head="lm_head.weight",
    block="model.layers.{}.",
    inner={
        "attention.norm": "input_layernorm.weight",
        "attention.linear": "self_attn.linear_attn.weight",
        **{f"attention.{key}": f"self_attn.{key}_proj.weight" for key in "qkvo"},
        **{f"attention.{key}.bias": f"self_attn.{key}_proj.bias" for key in "qkvo"},
        "ffn.norm": "post_attention_layernorm.weight",
        "ffn.linear": "mlp.linear_mlp.weight",
        **{f"ffn.{key}": f"mlp.{key}_proj.weight" for key in ("gate", "up", "down")},
        **{f"ffn.{key}.bias": f"mlp.{key}_proj.bias" for key in ("gate", "up", "down")},
    },
)


def tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """An attention (or the linear layer in its place) or a gated FFN, with the norm in front of it."""
    name = "attention" if isinstance(part, AttentionSpec) else "ffn"
    D = spec.hidden_size
    yield SubBlockTensor(f"{name}.norm", (D,), "norm scale")
    if part.kind == "linear":
        yield SubBlockTensor(f"{name}.linear", (D, D), "out of", axis=1)
    elif isinstance(part, FfnSpec):
        for key in ("ffn.gate", "ffn.up"):
            yield from _linear(key, part.width, D, "into", "width", spec.mlp_bias)
        yield from _linear("ffn.down", D, part.width, "out of", "width", spec.mlp_bias)
    else:
        H, K = part.heads * spec.head_dim, part.kv_heads * spec.head_dim
        biased = spec.attention_bias or spec.qkv_bias
        yield from _linear("attention.q", H, D, "into", "heads", biased)
        for key in ("attention.k", "attention.v"):
            yield from _linear(key, K, D, "into", "KV heads", biased)
        yield from _linear("attention.o", D, H, "out of", "heads", spec.attention_bias)


def _linear(key: str, rows: int, columns: int, role: Role, along: Along, bias: bool) -> Iterator[SubBlockTensor]:
    """A matrix as ``Linear`` stores it, [out, in], and its bias [out]."""
    inward = role == "into"
    yield SubBlockTensor(key, (rows, columns), role, along, axis=0 if inward else 1)
    if bias:
        yield SubBlockTensor(
            f"{key}.bias", (rows,), "into bias" if inward else "out of bias", along if inward else None
        )


def common(config: Mapping[str, Any]) -> dict[str, Any]:
    """What every Llama-shaped family says in the same words, as keyword arguments of ``ModelSpec``.

    Raises:
        CheckpointError: a field is missing or wrong, or the activation isn't element-wise (fusion needs that).
    """
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if hidden % heads:  # transformers refuses it too, even where head_dim is given
        raise CheckpointError(
            f"config.json: hidden_size {hidden} isn't a multiple of num_attention_heads {heads}",
            "correct the config",
        )
    activation = config.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ELEMENTWISE:
        raise CheckpointError(
            f"config.json: hidden_act {activation!r} isn't known to be element-wise, which fusing needs",
            f"known are {', '.join(sorted(ELEMENTWISE))}",
        )
    check_rotary(config)
    return {
        "hidden_size": hidden,
        "heads": heads,
        "head_dim": whole(config, "head_dim", hidden // heads),
        "vocab_size": whole(config, "vocab_size"),
        "tied": flag(config, "tie_word_embeddings"),
        "attention_bias": flag(config, "attention_bias"),
        "qkv_bias": flag(config, "qkv_bias"),
        "mlp_bias": flag(config, "mlp_bias"),
        "activation": activation,
        "norm_eps": number(config, "rms_norm_eps", 1e-6),
        "config": config,
    }
