"""Models to time: a checkpoint through transformers' own loading, or a child that has no file yet."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.families import family_of
from ffn_fusion.registration import register
from ffn_fusion.surgery.child import Child


def load_model(model: Checkpoint | Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A checkpoint as ``AutoModelForCausalLM`` gives it, in evaluation mode.

    One that transformers wouldn't read right (``Checkpoint.notes``) is made of what ffn-fusion reads.
    """
    from transformers import AutoModelForCausalLM

    register()
    if isinstance(model, Checkpoint) and model.notes:
        return realise(Child(model, model.blueprint(), width_multiple=1), dtype, device)
    folder = model.folder if isinstance(model, Checkpoint) else model
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).to(device).eval()


def realise(child: Child, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A child as a transformers model in memory, straight from its blueprint."""
    modules: Any = import_module(family_of(child.spec).modules)
    weights = {name: child.read(name).to(device, dtype) for name in child.tensors}
    return modules.make_model(child.spec, child.width_multiple, weights, device)
