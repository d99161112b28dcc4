"""Phi-3 and Phi-4: Llama with Q, K, V in one matrix and gate, up in another; later ones rotate a part of each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.families.fields import block_count, whole
from ffn_fusion.families.llama_shaped import NAMES
from ffn_fusion.families.rewriting import Piece, Rewriting, window_binds, without

_OWN = ("sliding_window", "partial_rotary_factor", "resid_pdrop", "embd_pdrop")


def rewrite(config: Mapping[str, Any]) -> Rewriting | None:
    """The Llama that the model is; None where it has a window or rotates a part of each head."""
    parameters = config.get("rope_parameters") or {}
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if window_binds(config) or partial not in (None, 1, 1.0):
        return None
    return Rewriting(without(config, *_OWN), dict(_pieces(config)))


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
