"""A pico model of every family, made and saved by transformers' own classes in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 1.6, 1.7, 1.8],
}

REWRITTEN: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral, free head_dim": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    "mistral, window never binds": {"model_type": "mistral", "sliding_window": 64},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", "sliding_window": None},
    "phi3, longrope": {
        "model_type": "phi3",
        "sliding_window": None,
        "rope_parameters": _LONG,
        "original_max_position_embeddings": 32,
    },
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.3,
        "logits_scaling": 8.0,
    },
    "granite, tied and biased": {
        "model_type": "granite",
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
        "logits_scaling": 3.0,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
}
"""Config of models that are Llamas in another notation."""


def write_family(folder: Path, case: dict[str, Any], seed: int = 0) -> Any:
    """Save a random model in float64 and return it. Every weight is drawn anew: norms far from 1, biases from 0."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**COMMON, **case})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.copy_(torch.randn_like(parameter) * scale + (parameter.ndim == 1))
    model.tie_weights()
    model.save_pretrained(folder)
    return model


OWN_FORM: dict[str, dict[str, Any]] = {
    "mistral, window": {"model_type": "mistral", "sliding_window": 8},
    "qwen2, windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3, tied and windowed": {
        "model_type": "qwen3",
        "head_dim": 8,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 1, 0]},
    "gemma": {"model_type": "gemma", "head_dim": 16, "tie_word_embeddings": True},
    "phi3, window": {"model_type": "phi3", "sliding_window": 8},
    "phi3, partly rotated": {
        "model_type": "phi3",
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "gpt2": {"model_type": "gpt2", "n_inner": None, "tie_word_embeddings": True},
    "gpt2, narrow": {"model_type": "gpt2", "n_inner": 48, "tie_word_embeddings": True},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "tie_word_embeddings": True},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.25},
    "gpt_neox, in sequence": {"model_type": "gpt_neox", "use_parallel_residual": False, "attention_bias": False},
}
"""Config of models that keep their family's own form."""

NORM_AFTER: dict[str, dict[str, Any]] = {
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    },
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", "sliding_window": 8},
    "glm4": {"model_type": "glm4", "head_dim": 8, "attention_bias": True, "partial_rotary_factor": 0.5},
}
"""Config of models that norm what is added: nothing is fused."""
