"""Where to compute and in what precision, when a person leaves it to us."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.settings import DeviceSettings, DtypeName

if TYPE_CHECKING:
    import torch

SettingsT = TypeVar("SettingsT", bound=DeviceSettings)


def compute_device(name: str) -> str:
    """The device that a name stands for; ``auto`` is a CUDA GPU if PyTorch sees one, otherwise the CPU.

    Apple's GPUs (mps) have no float64, which sums and solves need, so they are used only if a person asks for them.
    """
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(settings: SettingsT) -> SettingsT:
    """The same settings with a device in place of ``auto``."""
    return settings.model_copy(update={"device": compute_device(settings.device)})


def compute_dtype(name: DtypeName, checkpoint: Checkpoint, device: str) -> torch.dtype:
    """The dtype of a computation.

    ``model`` is what the checkpoint's weights are stored in; ``auto`` is float32 on a CPU, whose kernels are fastest in
    it, and the model's own elsewhere.
    """
    import torch

    if name == "auto":
        name = "float32" if device == "cpu" else "model"
    dtype: torch.dtype = torch_dtype(checkpoint.dtype) if name == "model" else getattr(torch, name)
    return dtype
