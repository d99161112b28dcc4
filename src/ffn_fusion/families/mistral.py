"""Mistral: Llama, but for a sliding window, which later models leave out. Without one it is a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ffn_fusion.families import llama_like
from ffn_fusion.families.family import Family
from ffn_fusion.families.llama_shaped import NAMES, tensors
from ffn_fusion.families.rewriting import Rewriting, window_binds, without


def rewrite(config: Mapping[str, Any]) -> Rewriting | None:
    """The Llama that the model is; None where its window hides tokens."""
    return None if window_binds(config) else Rewriting(without(config, "sliding_window"))


FAMILY = Family(
    "mistral",
    partial(llama_like.read, "mistral"),
    NAMES,
    tensors,
    usual={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 1 << 17},
    rewrite=rewrite,
    form=llama_like.FORM,
)
