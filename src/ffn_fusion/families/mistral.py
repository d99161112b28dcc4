"""Mistral: Llama, but for a sliding window, which later models leave out. Without one it is a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.families.rewriting import Rewriting, window_binds, without


def rewrite(config: Mapping[str, Any]) -> Rewriting | None:
    """The Llama that the model is; None where its window hides tokens."""
    return None if window_binds(config) else Rewriting(without(config, "sliding_window"))
