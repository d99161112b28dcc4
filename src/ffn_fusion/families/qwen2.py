"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V alone; some have sliding windows in their upper blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.families.rewriting import Rewriting, window_binds, without

_WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")


def rewrite(config: Mapping[str, Any]) -> Rewriting | None:
    """The Llama that the model is; None where a window hides tokens."""
    if config.get("use_sliding_window") and window_binds(config):
        return None
    return Rewriting({**without(config, *_WINDOWS), "qkv_bias": True, "attention_bias": False, "mlp_bias": False})
