"""A child as transformers runs it: what other engines are held against. Code of the checkpoint's own isn't run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The model as ``AutoModelForCausalLM`` loads it for a person who has this package."""
    from transformers import AutoModelForCausalLM

    from ffn_fusion.registration import register

    register()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()


@torch.inference_mode()
def logits(model: Any, ids_NT: Tensor) -> Tensor:
    """Logits [N, T, V], a prompt at a time."""
    return torch.cat([model(ids_T[None]).logits for ids_T in ids_NT])


@torch.inference_mode()
def greedy(model: Any, ids_NT: Tensor, new: int) -> Tensor:
    """Logits [N, S, V] of ``new`` tokens behind each prompt, each token the likeliest one; with the cache."""
    return torch.stack([_greedy(model, ids_T, new) for ids_T in ids_NT])


def _greedy(model: Any, ids_T: Tensor, new: int) -> Tensor:
    out = model(ids_T[None], use_cache=True)
    rows: list[Tensor] = [out.logits[0, -1]]
    while len(rows) < new:
        out = model(rows[-1].argmax()[None, None], past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1])
    return torch.stack(rows)
