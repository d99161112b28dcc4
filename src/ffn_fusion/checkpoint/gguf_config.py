"""The config.json that a GGUF file's metadata stands for. Llama only: others order their tensors
in other ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ffn_fusion.checkpoint.gguf_file import GgufFile
from ffn_fusion.errors import CheckpointError, FamilyError

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
ROPE_FREQUENCIES = "rope_freqs.weight"
_AGAIN = "convert the model to GGUF again, or start from its safetensors"
_REFUSED = {
    "expert_count": "a mixture of experts",
    "attention.sliding_window": "sliding-window attention",
    "attention.scale": "an attention scale of its own",
    "attention.clamp_kqv": "clamped attention",
    "logit_scale": "scaled logits",
    "residual_scale": "a scaled residual stream",
    "embedding_scale": "scaled embeddings",
    "use_parallel_residual": "a parallel residual stream",
}
"""Metadata that changes what the model computes: a plain Llama with these weights would be another model."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3.x release says; the file holds only the factors that come of it."""


def llama_config(gguf: GgufFile) -> dict[str, Any]:
    """config.json of the Llama in this file.

    Raises:
        FamilyError: another architecture, or a Llama with extras, with the reason.
        CheckpointError: metadata missing, wrong, or of a rotary scaling that can't be carried over.
    """
    architecture = gguf.metadata.get("general.architecture")
    if architecture != "llama":
        raise FamilyError(
            f"{gguf.path}: architecture {architecture!r} isn't read from GGUF, only llama is",
            "start from the model's safetensors",
        )
    for key, what in _REFUSED.items():
        if gguf.metadata.get(f"llama.{key}"):
            raise FamilyError(
                f"{gguf.path}: llama.{key} is set: {what}, which isn't supported", "choose another parent"
            )
    heads, hidden = _whole(gguf, "attention.head_count"), _whole(gguf, "embedding_length")
    head_dim = _whole(gguf, "attention.key_length", hidden // heads)
    if head_dim % 2:
        raise CheckpointError(f"{gguf.path}: heads of {head_dim} channels, which can't rotate in pairs", _AGAIN)
    _same_size(gguf, head_dim)
    theta = _short(_number(gguf, "rope.freq_base", 10000.0))
    scaling = _rope_scaling(gguf, theta, head_dim)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _whole(gguf, "feed_forward_length"),
        "num_hidden_layers": _whole(gguf, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(gguf, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _whole(gguf, "context_length"),
        "rms_norm_eps": _short(_number(gguf, "attention.layer_norm_rms_epsilon")),
        "vocab_size": _vocabulary(gguf),
        "tie_word_embeddings": OUTPUT not in gguf.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in gguf.tensors,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta},
        "dtype": _dtype(gguf),
    }
    return config | _token_ids(gguf, config["vocab_size"])


def output_dtype(kind_name: str) -> str:
    """Safetensors dtype of a converted tensor: stored floats stay, everything quantised becomes F32."""
    return kind_name if kind_name in ("F16", "BF16") else "F32"


def _whole(gguf: GgufFile, key: str, default: int | None = None) -> int:
    value = gguf.metadata.get(f"llama.{key}", default)
    if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:  # a number per block, all alike
        value = value[0].item()
    if isinstance(value, np.ndarray):
        raise FamilyError(f"{gguf.path}: llama.{key} differs from block to block", "start from the model's safetensors")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        found = "missing" if value is None else repr(value)
        raise CheckpointError(f"{gguf.path}: llama.{key} is {found}, not a positive whole number", _AGAIN)
    return value


def _number(gguf: GgufFile, key: str, default: float | None = None) -> float:
    value = gguf.metadata.get(f"llama.{key}", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        found = "missing" if value is None else repr(value)
        raise CheckpointError(f"{gguf.path}: llama.{key} is {found}, not a positive number", _AGAIN)
    return float(value)


def _short(value: float) -> float:
    """The decimal that was meant: GGUF keeps 1e-05 as the float32 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _same_size(gguf: GgufFile, head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        size = _whole(gguf, key, head_dim)
        if size != head_dim:
            raise FamilyError(
                f"{gguf.path}: llama.{key} is {size}, but heads have {head_dim} channels: not supported",
                "choose another parent",
            )


def _vocabulary(gguf: GgufFile) -> int:
    embedding = gguf.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{gguf.path}: no tensor {EMBEDDING} with two dimensions", _AGAIN)
    return embedding.shape[0]


def _token_ids(gguf: GgufFile, vocabulary: int) -> dict[str, int]:
    found = {}
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = gguf.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token, int) and 0 <= token < vocabulary:
            found[f"{ours}_token_id"] = token
    return found


def _dtype(gguf: GgufFile) -> str:
    """What to compute in: half precision if every matrix has it (norms never do in GGUF), else float32."""
    kinds = {output_dtype(tensor.kind_name) for tensor in gguf.tensors.values() if len(tensor.shape) > 1}
    if len(kinds) > 1:
        return "float32"
    return {"F16": "float16", "BF16": "bfloat16"}.get(kinds.pop(), "float32")


def _rope_scaling(gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    kind = gguf.metadata.get("llama.rope.scaling.type", "none")
    if ROPE_FREQUENCIES in gguf.tensors:
        if kind != "none":
            raise CheckpointError(f"{gguf.path}: both {ROPE_FREQUENCIES} and rope scaling {kind!r}", _AGAIN)
        return _llama3_scaling(gguf, theta, head_dim)
    if kind == "none":
        scale = _number(gguf, "rope.scale_linear", 1.0)  # how files of 2023 said it
        return None if scale == 1.0 else {"rope_type": "linear", "factor": _short(scale)}
    if kind == "linear":
        return {"rope_type": "linear", "factor": _short(_number(gguf, "rope.scaling.factor"))}
    if kind != "yarn":
        raise CheckpointError(f"{gguf.path}: rope scaling {kind!r} can't be carried over", "start from the safetensors")
    simple = {f"llama.rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "finetuned")}
    extra = [key for key in gguf.metadata if key.startswith("llama.rope.scaling.") and key not in simple]
    if extra:
        raise CheckpointError(f"{gguf.path}: {extra[0]} can't be carried over", "start from the model's safetensors")
    return {
        "rope_type": "yarn",
        "factor": _short(_number(gguf, "rope.scaling.factor")),
        "original_max_position_embeddings": _whole(gguf, "rope.scaling.original_context_length"),
    }


def _llama3_scaling(gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3.x stores by what each rotary frequency is divided; the largest is the scaling's factor."""
    tensor = gguf.tensors[ROPE_FREQUENCIES]
    if tensor.kind_name != "F32" or tensor.shape != (head_dim // 2,):
        found = f"{tensor.kind_name} {list(tensor.shape)}"
        raise CheckpointError(f"{gguf.path}: {ROPE_FREQUENCIES} is {found}, not F32 [{head_dim // 2}]", _AGAIN)
    stored = tensor.rows(0, head_dim // 2).view("<f4").reshape(-1)
    factor = _short(float(stored.max()))
    if np.all(stored == 1.0):
        return None
    sane = math.isfinite(factor) and factor > 0
    if not sane or not np.allclose(stored, llama3_factors(factor, theta, head_dim), rtol=1e-4, atol=0.0):
        raise CheckpointError(
            f"{gguf.path}: {ROPE_FREQUENCIES} isn't Llama 3's rotary scaling; no other can be carried over",
            "start from the model's safetensors",
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def llama3_factors(factor: float, theta: float, head_dim: int) -> Sequence[float]:
    """By how much each of the head_dim/2 rotary frequencies is divided.

    With wavelength w = 2 pi / frequency and context c: 1 for w < c/high, ``factor`` for w > c/low, and
    between them 1 / ((1 - s) / factor + s) with s = (c/w - low) / (high - low).
    """
    context, low = LLAMA3["original_max_position_embeddings"], LLAMA3["low_freq_factor"]
    high = LLAMA3["high_freq_factor"]
    result = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        result.append(1 / ((1 - smooth) / factor + smooth))
    return result
