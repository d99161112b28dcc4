"""Phi-3 and Phi-4: Llama with Q, K, V in one matrix and gate, up in another; later ones rotate a part of each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.families import llama_like, llama_shaped
from ffn_fusion.families.family import PACKED, Family, SubBlockTensor
from ffn_fusion.families.fields import block_count, whole
from ffn_fusion.families.llama_shaped import NAMES
from ffn_fusion.families.rewriting import Piece, Rewriting, window_binds, without
from ffn_fusion.families.spec import AttentionSpec, FfnSpec, ModelSpec

_OWN = ("sliding_window", "partial_rotary_factor", "resid_pdrop", "embd_pdrop")


def rewrite(config: Mapping[str, Any]) -> Rewriting | None:
    """The Llama that the model is; None where it has a window or rotates a part of each head."""
    parameters = config.get("rope_parameters") or {}
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if window_binds(config) or partial not in (None, 1, 1.0):
        return None
    return Rewriting(without(config, *_OWN), dict(_pieces(config)))


def tensors(spec: ModelSpec, part: SubBlock) -> Iterator[SubBlockTensor]:
    """Llama's, with Q, K, V in one matrix and gate, up in another."""
    D, d = spec.hidden_size, spec.head_dim
    for tensor in llama_shaped.tensors(spec, part):
        if tensor.key == "attention.q" and isinstance(part, AttentionSpec):
            yield SubBlockTensor("attention.qkv", ((part.heads + 2 * part.kv_heads) * d, D), "into")
        elif tensor.key == "ffn.gate" and isinstance(part, FfnSpec):
            yield SubBlockTensor("ffn.gate_up", (2 * part.width, D), "into", "width", stacked=2)
        elif tensor.key not in ("attention.k", "attention.v", "ffn.up"):
            yield tensor


_PACKED = {"attention.qkv": "self_attn.qkv_proj.weight", "ffn.gate_up": "mlp.gate_up_proj.weight"}
FAMILY = Family(
    "phi3",
    partial(llama_like.read, "phi3"),
    replace(NAMES, inner={**NAMES.inner, **_PACKED}),
    tensors,
    usual={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    rewrite=rewrite,
    form=llama_like.FORM,
    refuses={"pool KV heads": PACKED, "side by side": PACKED},
)


def _pieces(config: Mapping[str, Any]) -> Iterator[tuple[str, Piece]]:
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    head_dim, kv_heads = whole(config, "head_dim", hidden // heads), whole(config, "num_key_value_heads", heads)
    width = whole(config, "intermediate_size")
    packed = {
        "self_attn.qkv_proj": {
            "attention.q": heads * head_dim,
            "attention.k": kv_heads * head_dim,
            "attention.v": kv_heads * head_dim,
        },
        "mlp.gate_up_proj": {"ffn.gate": width, "ffn.up": width},
    }
    for block in range(block_count(config)):
        for stored, parts in packed.items():
            start, total = 0, sum(parts.values())
            for key, rows in parts.items():
                yield NAMES.of(block, key), Piece(f"{NAMES.prefix(block)}{stored}.weight", (start, start + rows, total))
                start += rows
