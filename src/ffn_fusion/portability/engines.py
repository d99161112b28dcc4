"""Engines that are run from here: a checkpoint folder and tokens in, logits out. An engine more is an entry more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ffn_fusion.errors import UsageError
from ffn_fusion.portability.rule import Engine, parse_engines

Logits = Callable[[Path, Tensor, torch.dtype], Tensor]
"""(folder, token ids [N, T], dtype to compute in) -> logits [N, T, V]."""


@torch.inference_mode()
def transformers_logits(folder: Path, ids_NT: Tensor, dtype: torch.dtype) -> Tensor:
    """What ``AutoModelForCausalLM`` computes, loaded as a person loads it. Code of the checkpoint's own isn't run."""
    from transformers import AutoModelForCausalLM

    from ffn_fusion.registration import register

    register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
    return torch.cat([model(ids_T[None]).logits for ids_T in ids_NT])


RUNNABLE: Mapping[Engine, Logits] = {"transformers": transformers_logits}


def runnable(name: str) -> Engine:
    """An engine by name that can be run from here.

    Raises:
        UsageError: it can't, or there's no such engine.
    """
    found = parse_engines([name])
    if len(found) != 1 or found[0] not in RUNNABLE:
        raise UsageError(f"{name} can't be run from here", f"can be: {', '.join(RUNNABLE)}")
    return found[0]
