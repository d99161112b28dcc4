"""What to compute in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.settings import DtypeName

if TYPE_CHECKING:
    import torch


def compute_dtype(name: DtypeName, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of a computation; ``auto`` is what the checkpoint's weights are stored in."""
    import torch

    dtype: torch.dtype = torch_dtype(checkpoint.dtype) if name == "auto" else getattr(torch, name)
    return dtype
