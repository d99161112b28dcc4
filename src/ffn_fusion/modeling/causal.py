"""The parts of a causal language model of transformers, so that nobody else has to know where they are."""

from __future__ import annotations

from typing import Any

from torch import nn


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks, in order."""
    found = model.model.layers
    assert isinstance(found, nn.ModuleList)
    return found


def final_norm_of(model: Any) -> nn.Module:
    """The norm in front of the head."""
    found = model.model.norm
    assert isinstance(found, nn.Module)
    return found


def head_of(model: Any) -> Any:
    """The layer that makes logits of states."""
    return model.get_output_embeddings()


def embedding_of(model: Any) -> Any:
    """The layer that makes states of tokens."""
    return model.get_input_embeddings()


def renew_rotary(model: Any, device: str) -> None:
    """Compute the buffers of the rotary embedding on ``device``: they're not stored, and a meta device has none."""
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
