"""Families that norm what a sub-block gives before it's added: Gemma 2 and 3, OLMo 2 and 3, GLM-4.

    x + m(Attn(n(x)))        x + m(FFN(n(x)))        OLMo has no norm n in front

The sum of several FFNs, each with a norm of its own after it, isn't one wide FFN. All else works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ffn_fusion.blueprint import Operation, SubBlock
from ffn_fusion.families.block_lists import full_every, no_lists
from ffn_fusion.families.family import Family, Names, Role, SubBlockTensor
from ffn_fusion.families.llama_like import read
from ffn_fusion.families.llama_shaped import NAMES
from ffn_fusion.families.llama_shaped import tensors as llama_tensors
from ffn_fusion.families.per_block import Modules, PerBlockForm
from ffn_fusion.families.spec import AttentionSpec, FfnSpec, ModelSpec

_REFUSES: dict[Operation, str] = {
    "fuse": "each FFN's output is normed before it's added, so the sum of several FFNs isn't one wide FFN",
    "side by side": "each sub-block's output is normed before it's added, so a sum of several isn't one wide one",
}
_ROTARY = ("rope_parameters", "rope_scaling")


def _names(attention: Mapping[str, str], ffn: Mapping[str, str]) -> Names:
    return replace(NAMES, inner={**NAMES.inner, **_prefixed("attention", attention), **_prefixed("ffn", ffn)})


def _prefixed(part: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{part}.{key}": f"{name}.weight" for key, name in names.items()}


def _read_gemma(family: str, config: Mapping[str, Any]) -> ModelSpec:
    """Gemma 3 has rotary settings for each type of attention, which are transformers' business alone."""
    plain = {key: value for key, value in config.items() if key not in _ROTARY}
    return replace(read(family, {**plain, "hidden_act": config.get("hidden_activation")}), config=config)


def _read_glm(config: Mapping[str, Any]) -> ModelSpec:
    """Its ``attention_bias`` is of Q, K and V alone."""
    biased = {**config, "qkv_bias": config.get("attention_bias", False), "attention_bias": False}
    return replace(read("glm4", biased), config=config)


def _tensors(
    norms: Mapping[str, tuple[str, ...]],
    qk_norm: str,
    plus: float,
    spec: ModelSpec,
    part: SubBlock,
) -> Iterator[SubBlockTensor]:
    """Llama's, with other norms.

    Args:
        norms: of each sub-block, the keys of its norms.
        qk_norm: over a ``head``, over ``all`` of them, or ``none``.
        plus: what is added to a norm's scale as stored.
    """
    name = "attention" if isinstance(part, AttentionSpec) else "ffn"
    roles: dict[str, Role] = {"norm": "norm scale", "norm_after": "scale after"}
    for key in norms[name]:
        yield SubBlockTensor(f"{name}.{key}", (spec.hidden_size,), roles[key], plus=plus)
    yield from (tensor for tensor in llama_tensors(spec, part) if tensor.role != "norm scale")
    if isinstance(part, AttentionSpec) and qk_norm != "none":
        for key, heads in (("q", part.heads), ("k", part.kv_heads)):
            size = spec.head_dim if qk_norm == "head" else heads * spec.head_dim
            yield SubBlockTensor(f"attention.{key}_norm", (size,), "copied")


def _glm_tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """Llama's with norms on both sides, gate and up in one matrix."""
    found = _tensors({"attention": ("norm", "norm_after"), "ffn": ("norm", "norm_after")}, "none", 0.0, spec, part)
    for tensor in found:
        if tensor.key == "ffn.gate":
            assert isinstance(part, FfnSpec)
            yield SubBlockTensor("ffn.gate_up", (2 * part.width, spec.hidden_size), "into", "width", stacked=2)
        elif tensor.key != "ffn.up":
            yield tensor


_QK = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_BOTH_SIDES = {"attention": ("norm", "norm_after"), "ffn": ("norm", "norm_after")}
_AFTER = {"attention": ("norm_after",), "ffn": ("norm_after",)}
_GEMMA_FORM = PerBlockForm(
    Modules("self_attn", ("input_layernorm", "post_attention_layernorm"), "post_attention_layernorm"),
    Modules("mlp", ("pre_feedforward_layernorm", "post_feedforward_layernorm"), "post_feedforward_layernorm"),
)
_GEMMA_NORMS = _names(
    {"norm": "input_layernorm", "norm_after": "post_attention_layernorm", **_QK},
    {"norm": "pre_feedforward_layernorm", "norm_after": "post_feedforward_layernorm"},
)
_OLMO_FORM = PerBlockForm(
    Modules("self_attn", ("post_attention_layernorm",), "post_attention_layernorm"),
    Modules("mlp", ("post_feedforward_layernorm",), "post_feedforward_layernorm"),
)
_OLMO_NAMES = _names(
    {"norm_after": "post_attention_layernorm", **_QK},
    {"norm_after": "post_feedforward_layernorm"},
)
_GLM_FORM = PerBlockForm(
    Modules("self_attn", ("input_layernorm", "post_self_attn_layernorm"), "post_self_attn_layernorm"),
    Modules("mlp", ("post_attention_layernorm", "post_mlp_layernorm"), "post_mlp_layernorm"),
)
_GLM_NAMES = _names(
    {"norm": "input_layernorm", "norm_after": "post_self_attn_layernorm"},
    {"norm": "post_attention_layernorm", "norm_after": "post_mlp_layernorm", "gate_up": "mlp.gate_up_proj"},
)

_GEMMA_USUAL = {
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
}

FAMILIES = (
    *(
        Family(
            name,
            partial(_read_gemma, name),
            _GEMMA_NORMS,
            partial(_tensors, _BOTH_SIDES, qk_norm, 1.0),
            usual=_GEMMA_USUAL,
            form=_GEMMA_FORM,
            lists=full_every(period),
            refuses=_REFUSES,
        )
        for name, qk_norm, period in (("gemma2", "none", 2), ("gemma3_text", "head", 6))
    ),
    *(
        Family(
            name,
            partial(read, name),
            _OLMO_NAMES,
            partial(_tensors, _AFTER, "all", 0.0),
            usual={"rms_norm_eps": 1e-5},
            form=_OLMO_FORM,
            lists=lists,
            refuses=_REFUSES | {"pool KV heads": "a norm goes over the keys of all heads together"},
        )
        for name, lists in (("olmo2", no_lists), ("olmo3", full_every(4)))
    ),
    Family(
        "glm4",
        _read_glm,
        _GLM_NAMES,
        _glm_tensors,
        usual={"num_key_value_heads": 2, "head_dim": 128, "attention_bias": True, "rms_norm_eps": 1.5625e-07},
        form=_GLM_FORM,
        refuses=_REFUSES,
    ),
)
