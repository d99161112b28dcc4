"""The architectures of llama.cpp that are read: the family that each is, and what its metadata adds to a Llama's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ffn_fusion.gguf.file import GgufFile


def _nothing(gguf: GgufFile) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """How the files of one architecture are read.

    Args:
        model_type: of the config.json that such a file becomes; ``model_class`` is the class that it names.
        interleaved: the rows of Q and K are in GGUF's rotary order; False: in that of Hugging Face.
        reads: keys that change what is computed, and that ``fields`` carries over.
        fields: what config.json says besides a Llama's fields. Raises: CheckpointError.
        differing: sizes may differ from block to block.
        norms_plus: what files add to the scales of norms as a checkpoint stores them.
    """

    model_type: str
    model_class: str
    interleaved: bool = True
    reads: tuple[str, ...] = ()
    fields: Callable[[GgufFile], Mapping[str, Any]] = _nothing
    differing: bool = False
    norms_plus: float = 0.0


def _phi3(gguf: GgufFile) -> dict[str, Any]:
    """A window of 0 stands for none; the rotated part of a head is a number of channels.

    transformers' own padding token, 32000, isn't in every Phi-3's vocabulary, so that one without any has to say so.
    """
    head_dim = gguf.whole("embedding_length") // gguf.whole("attention.head_count")
    rotated = gguf.whole("rope.dimension_count", head_dim)
    said: dict[str, Any] = {
        "sliding_window": gguf.setting("attention.sliding_window") or None,
        "pad_token_id": None,
    }
    if context := gguf.setting("rope.scaling.original_context_length"):
        said["original_max_position_embeddings"] = context
    return said if rotated == head_dim else {**said, "partial_rotary_factor": rotated / head_dim}


def _smollm3(gguf: GgufFile) -> dict[str, Any]:
    """transformers' own padding token, 128004, isn't in every vocabulary, so that a model without any has to say so."""
    return {"pad_token_id": None}


def _gemma(gguf: GgufFile) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh", "pad_token_id": None}


_MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _granite(gguf: GgufFile) -> dict[str, Any]:
    return {field: gguf.number(key) for key, field in _MULTIPLIERS.items()}


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM"),
    "deci": Architecture("nemotron-nas", "DeciLMForCausalLM", differing=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", interleaved=False),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        interleaved=False,
        reads=("attention.sliding_window", "rope.dimension_count"),
        fields=_phi3,
    ),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", interleaved=False),
    "openelm": Architecture("qwen3", "Qwen3ForCausalLM", interleaved=False, differing=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", fields=_smollm3),
    "gemma": Architecture("gemma", "GemmaForCausalLM", interleaved=False, fields=_gemma, norms_plus=1.0),
    "granite": Architecture("granite", "GraniteForCausalLM", reads=tuple(_MULTIPLIERS), fields=_granite),
}
"""By ``general.architecture``. Mistral is written as ``llama``, a Qwen3 whose blocks differ as ``openelm``."""
