# SPDX-License-Identifier: Apache-2.0
"""Config of a Nemotron-NAS (DeciLM) model: a Llama whose blocks differ, as ``block_configs`` says.

This file is self-contained (transformers and nothing else): it travels inside every child checkpoint.
"""

from typing import Any

from transformers import LlamaConfig

WIDTH_MULTIPLE = 256


class _Entry(dict[str, Any]):
    """A JSON object whose keys read as attributes too: transformers serialises it, vLLM reads its attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        return _Entry({key: _entries(item) for key, item in value.items()})
    return [_entries(item) for item in value] if isinstance(value, list | tuple) else value


class DeciLMConfig(LlamaConfig):
    """``block_configs[i] = {"attention": {...}, "ffn": {...}}``, one entry a block.

    ``attention``: ``no_op``, ``replace_with_linear`` or ``n_heads_in_group`` (query heads per KV head).
    ``ffn``: ``no_op``, ``replace_with_linear``, ``ffn_mult`` (the width as engines compute it) or
    ``intermediate_size`` (the width itself, where ``ffn_mult`` is absent).
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        # Per block in this family; Llama's config would put numbers in their place.
        for key in ("intermediate_size", "num_key_value_heads"):
            kwargs.pop(key, None)
        self.block_configs = _entries(block_configs or [])
        if block_configs is not None:
            kwargs["num_hidden_layers"] = len(block_configs)
        super().__init__(**kwargs)

    def kv_heads(self, block: int) -> int | None:
        """KV heads of a block; None where it has no softmax attention."""
        attention = self.block_configs[block]["attention"]
        if attention.get("no_op") or attention.get("replace_with_linear"):
            return None
        return self.num_attention_heads // attention["n_heads_in_group"]

    def ffn_width(self, block: int) -> int | None:
        """Width of a block's gated FFN; None where it has none."""
        ffn = self.block_configs[block]["ffn"]
        if ffn.get("no_op") or ffn.get("replace_with_linear"):
            return None
        if ffn.get("ffn_mult") is None:
            return ffn["intermediate_size"]
        width = int(2 * ffn["ffn_mult"] * self.hidden_size / 3)
        return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE

    def to_dict(self) -> dict[str, Any]:
        """As saved: sizes that differ by block are null, and rotary settings stand in both spellings."""
        config = super().to_dict()
        config["intermediate_size"] = None
        config["num_key_value_heads"] = None
        rope = dict(config.get("rope_parameters") or {})
        if rope:
            config["rope_theta"] = rope.get("rope_theta")
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            config["rope_scaling"] = scaling if rope.get("rope_type", "default") != "default" else None
        return config
