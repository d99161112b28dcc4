"""Models of transformers: a checkpoint through its own loading, or a child that has no file yet."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.families import family_of
from ffn_fusion.registration import register
from ffn_fusion.surgery.child import Child


def load_model(model: Checkpoint | Path, dtype: torch.dtype, device: str | None = None) -> Any:
    """Load a checkpoint with ``AutoModelForCausalLM``, in evaluation mode. No code of its own is run.

    If transformers would misread it (``Checkpoint.notes``), the model is made of what ffn-fusion reads.

    Args:
        device: where to; None leaves it to transformers.
    """
    from transformers import AutoModelForCausalLM

    register()
    if isinstance(model, Checkpoint) and model.notes:
        return realise(Child(model, model.blueprint(), width_multiple=1), dtype, device or "cpu")
    folder = model.folder if isinstance(model, Checkpoint) else model
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
    return loaded if device is None else loaded.to(device)


def realise(child: Child, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Make a transformers model of a child in memory, straight from its blueprint."""
    modules: Any = import_module(family_of(child.spec).modules)
    weights = {name: child.read(name).to(device, dtype) for name in child.tensors}
    return modules.make_model(child.spec, child.width_multiple, weights, device)
