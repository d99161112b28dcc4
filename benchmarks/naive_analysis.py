"""The analysis as one would write it with transformers alone: hooks, and one full forward pass a variant.

What the analysis engine is compared with. Written with care (no gradients, no KV cache, the parent's contributions and
log-probabilities kept, no LM head where none is needed, logits in slices), but every variant goes through every block.
Shapes: N windows, T tokens, L blocks, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 256  # tokens whose logits are held at once: 50 MB for a vocabulary of 49152

Numbers = npt.NDArray[np.float64]


def load(folder: Any) -> Any:
    """The model in float32, ready for inference."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def last_state(model: Any, ids_NT: Tensor) -> Tensor:
    """Behind the final norm: [N, T] -> [N, T, D]."""
    state: Tensor = model.model(ids_NT, use_cache=False).last_hidden_state
    return state


@torch.inference_mode()
def block_matrix(model: Any, ids_NT: Tensor) -> Numbers:
    """M [L, L]: M[i, j] = mean over tokens of the cosine distance between what block j adds in the parent and what it
    adds with block i removed; NaN where j <= i."""
    layers = model.model.layers
    matrix = np.full((len(layers), len(layers)), np.nan)
    parent: list[Tensor] = []
    removed: int | None = None

    def hook(j: int, x: Tensor, out: Tensor) -> Tensor | None:
        if removed is None:
            parent.append(out - x)
        elif j == removed:
            return x
        elif j > removed:
            matrix[removed, j] = 1 - functional.cosine_similarity(parent[j], out - x, dim=-1).mean().item()
        return None

    handles = [
        layer.register_forward_hook(lambda _, args, out, j=j: hook(j, args[0], out)) for j, layer in enumerate(layers)
    ]
    try:
        last_state(model, ids_NT)
        for removed in range(len(layers)):  # noqa: B007  (the hooks read it)
            last_state(model, ids_NT)
    finally:
        for handle in handles:
            handle.remove()
    return matrix


@torch.inference_mode()
def attention_scores(model: Any, ids_NT: Tensor) -> tuple[Numbers, Numbers]:
    """For every attention dropped alone: KL(parent || changed) [L] and increase of the LM loss [L], in nats a token."""
    parent = log_probabilities(model, last_state(model, ids_NT))
    parent_loss = functional.nll_loss(parent, ids_NT[:, 1:].flatten()).item()
    found = []
    for layer in model.model.layers:
        handle = layer.self_attn.register_forward_hook(lambda _, __, out: (torch.zeros_like(out[0]), *out[1:]))
        try:
            found.append(divergence(model, last_state(model, ids_NT), ids_NT, parent))
        finally:
            handle.remove()
    kl, loss = np.asarray(found).T
    return kl, loss - parent_loss


def log_probabilities(model: Any, state_NTD: Tensor) -> Tensor:
    """Of every window's tokens but the last, which predicts none: [N * (T - 1), V]."""
    rows = state_NTD[:, :-1].flatten(0, 1)
    result = torch.empty(len(rows), model.config.vocab_size)
    for start in range(0, len(rows), _ROWS):
        result[start : start + _ROWS] = model.lm_head(rows[start : start + _ROWS]).log_softmax(-1)
    return result


def divergence(model: Any, state_NTD: Tensor, ids_NT: Tensor, parent: Tensor) -> tuple[float, float]:
    """KL(parent || this) and LM loss, means over tokens, given the parent's log-probabilities."""
    rows, targets = state_NTD[:, :-1].flatten(0, 1), ids_NT[:, 1:].flatten()
    kl = loss = 0.0
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        log_q = model.lm_head(rows[part]).log_softmax(-1)
        kl += functional.kl_div(log_q, parent[part], reduction="sum", log_target=True).item()
        loss += functional.nll_loss(log_q, targets[part], reduction="sum").item()
    return kl / len(rows), loss / len(rows)
