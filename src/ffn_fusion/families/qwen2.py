"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V alone; some have sliding windows in their upper blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ffn_fusion.families import llama_like
from ffn_fusion.families.block_lists import upper_windows
from ffn_fusion.families.family import Family
from ffn_fusion.families.llama_shaped import NAMES, tensors
from ffn_fusion.families.rewriting import Rewriting, window_binds, without

_WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")


def rewrite(config: Mapping[str, Any]) -> Rewriting | None:
    """The Llama that the model is; None where a window hides tokens."""
    if config.get("use_sliding_window") and window_binds(config):
        return None
    return Rewriting({**without(config, *_WINDOWS), "attention_bias": False, "mlp_bias": False})


FAMILY = Family(
    "qwen2",
    partial(llama_like.read, "qwen2"),
    NAMES,
    tensors,
    usual={
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_position_embeddings": 1 << 15,
        "qkv_bias": True,  # no field of transformers' config: it always has them
    },
    rewrite=rewrite,
    form=llama_like.FORM,
    lists=upper_windows,
)
