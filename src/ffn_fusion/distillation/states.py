"""Capture the hidden states of a transformers model after chosen blocks, and after the final norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ffn_fusion.modeling.causal import blocks_of, final_norm_of


@dataclass
class States:
    """The states after the requested blocks, in order, and after the final norm: each [B, T, D]."""

    blocks: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None


@contextmanager
def seen(model: Any, blocks: Sequence[int]) -> Iterator[States]:
    """Capture the states of the forward pass that runs inside this context.

    Args:
        model: a causal model of Llama's form, unwrapped.
    """
    states, watching = States(), True

    def after_block(_: Any, __: Any, output: Any) -> None:
        if watching:  # and not while checkpointing computes a block once more
            states.blocks.append(output[0] if isinstance(output, tuple) else output)

    def after_norm(_: Any, __: Any, output: Tensor) -> None:
        if watching:
            states.last = output

    hooks = [blocks_of(model)[i].register_forward_hook(after_block) for i in blocks]
    hooks.append(final_norm_of(model).register_forward_hook(after_norm))
    try:
        yield states
    finally:
        watching = False
        for hook in hooks:
            hook.remove()
