"""Models that are Llamas in another notation, with tensors packed, scaled or renamed: rewritten as they're read.

A rewriting is exact but for rounding: a number that a factor changes is rounded once, to the dtype it's stored in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORM = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
"""What a rewritten config says it is."""


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the Llama form comes from: a stored tensor, or ``rows`` of it, times ``factor``.

    ``rows`` are the first of them, the first that isn't taken, and how many the stored tensor has.
    """

    name: str
    rows: tuple[int, int, int] | None = None
    factor: float = 1.0

    @property
    def renames(self) -> bool:
        """Whether it is a whole stored tensor as it is, under another name."""
        return self.rows is None and self.factor == 1.0


@dataclass(frozen=True)
class Rewriting:
    """A model in Llama's form: its config, and the tensors that aren't stored under Llama's names as they are."""

    config: Mapping[str, Any]
    pieces: Mapping[str, Piece] = field(default_factory=dict)


def without(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The config in Llama's form without ``keys``, which only its own family reads."""
    return {key: value for key, value in config.items() if key not in keys} | FORM


def window_binds(config: Mapping[str, Any]) -> bool:
    """Whether a sliding window hides anything from a token: not where it's as long as the longest context."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool):
        return False
    longest = config.get("max_position_embeddings")
    return not isinstance(longest, int) or window < longest
