"""The parts of a causal language model of transformers, so that nobody else has to know where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks, in order: the one list of modules that such a model has."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def final_norm_of(model: Any) -> nn.Module:
    """The norm in front of the head: the one that stands beside the list of blocks."""
    blocks = blocks_of(model)
    inside = next(module for module in model.modules() if blocks in module.children())
    return next(module for module in inside.children() if "norm" in type(module).__name__.lower())


def head_of(model: Any) -> Any:
    """The layer that makes logits of states."""
    return model.get_output_embeddings()


@dataclass(frozen=True)
class HeadOutput:
    """From what the head's matrix gives to logits: divided by ``scaling`` (Granite), then capped (Gemma 2).

    logits = cap tanh(z / (scaling cap)); without a cap z / scaling.
    """

    scaling: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> HeadOutput:
        """What a transformers config says of it."""
        return cls(getattr(config, "logits_scaling", 1.0), getattr(config, "final_logit_softcapping", None))

    def logits(self, z: Tensor) -> Tensor:
        """The logits, from the products with the head's matrix."""
        if self.scaling != 1.0:
            z = z / self.scaling
        return torch.tanh(z / self.cap) * self.cap if self.cap else z

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of logits to the products that they came of, from the logits."""
        return (1 - (logits / self.cap).square()) / self.scaling if self.cap else 1 / self.scaling


AS_IT_IS = HeadOutput()
"""Most models take the products for the logits."""


def embedding_of(model: Any) -> Any:
    """The layer that makes states of tokens."""
    return model.get_input_embeddings()


def renew_buffers(model: Any, device: str | torch.device) -> None:
    """Compute on ``device`` what isn't stored (rotary tables, scales of embeddings): a meta device has none of it."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if module._non_persistent_buffers_set:
            model._init_weights(module)
