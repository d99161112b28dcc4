"""The text model inside a wrapper that also sees images or hears: its config and its tensors, without the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ffn_fusion.errors import CheckpointError

_INSIDE = "language_model"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")
Item = TypeVar("Item")


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the text model alone, complete: a wrapper's holds only what differs from the family's defaults.

    Raises:
        CheckpointError: there is no text model in it, or transformers doesn't know its family.
    """
    from transformers import CONFIG_MAPPING

    said = config.get("text_config")
    family = said.get("model_type") if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or family not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json: text_config names no family that transformers knows ({family!r})",
            "leave out --text-model if the model is no wrapper",
        )
    try:
        whole: dict[str, Any] = CONFIG_MAPPING[family](**said).to_dict()
    except Exception as error:  # transformers' validation raises many kinds; each is about a field
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"config.json: text_config can't be read ({line})", "correct the config") from error
    outer = {key: config[key] for key in _TOKENS if config.get(key) is not None and whole.get(key) is None}
    tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
    return {**whole, **outer, **tied}


def text_tensors(found: Mapping[str, Item], head: str) -> dict[str, Item]:
    """The stored tensors of the text model, and a head of this name that is stored beside it.

    Raises:
        CheckpointError: there are none.
    """
    kept = {name: item for name, item in found.items() if _INSIDE in name.split(".") or name == head}
    if not any(_INSIDE in name for name in kept):
        raise CheckpointError(f"no tensor's name has {_INSIDE!r} in it", "leave out --text-model")
    return kept
