"""Which families there are, and why some can't be: a family is facts in one small file, listed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import llama, nemotron_nas
from ffn_fusion.families.spec import ModelSpec

_READERS: dict[str, Callable[[Mapping[str, Any]], ModelSpec]] = {
    model_type: family.read for family in (llama, nemotron_nas) for model_type in family.MODEL_TYPES
}

_NORM_BEHIND = "it normalises each FFN's output before adding it, so the sum of several FFNs isn't one wide FFN"
_EXPERTS = "its FFN is a mixture of experts; a router per block picks other experts, so they can't be concatenated"
_UNFUSABLE = {
    "gemma2": _NORM_BEHIND,
    "gemma3": _NORM_BEHIND,
    "gemma3_text": _NORM_BEHIND,
    "olmo2": _NORM_BEHIND,
    "olmo3": _NORM_BEHIND,
    "glm4": _NORM_BEHIND,
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "deepseek_v3": _EXPERTS,
    "llama4": _EXPERTS,
}


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """config.json -> :class:`ModelSpec`.

    Raises:
        FamilyError: the family is unknown or can't be fused, with the reason.
        CheckpointError: the config is incomplete or wrong.
    """
    model_type = config.get("model_type")
    supported = ", ".join(sorted(_READERS))
    if not isinstance(model_type, str):
        raise CheckpointError(
            "config.json has no model_type", f"this isn't a Hugging Face model; known are {supported}"
        )
    if model_type in _UNFUSABLE:
        raise FamilyError(f"family {model_type!r} can't be fused: {_UNFUSABLE[model_type]}", f"supported: {supported}")
    if model_type not in _READERS:
        raise FamilyError(f"family {model_type!r} isn't known", f"supported: {supported}")
    if isinstance(config.get("quantization_config"), Mapping):
        raise FamilyError(
            "the weights are quantised (config.json has quantization_config)",
            "start from the unquantised model and quantise the child",
        )
    return _READERS[model_type](config)
