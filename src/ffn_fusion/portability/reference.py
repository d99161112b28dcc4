"""What transformers computes with a child: the reference for other engines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.inference_mode()
def logits(model: Any, ids_NT: Tensor) -> Tensor:
    """Return logits [N, T, V], computed one prompt at a time."""
    return torch.cat([model(ids_T[None]).logits for ids_T in ids_NT])


@torch.inference_mode()
def greedy(model: Any, ids_NT: Tensor, new: int) -> Tensor:
    """Return logits [N, S, V] of ``new`` tokens after each prompt, each the most likely one; with the cache."""
    return torch.stack([_greedy(model, ids_T, new) for ids_T in ids_NT])


def _greedy(model: Any, ids_T: Tensor, new: int) -> Tensor:
    out = model(ids_T[None], use_cache=True)
    rows: list[Tensor] = [out.logits[0, -1]]
    while len(rows) < new:
        out = model(rows[-1].argmax()[None, None], past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1])
    return torch.stack(rows)
