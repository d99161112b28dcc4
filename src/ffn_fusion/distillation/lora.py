"""LoRA (arXiv 2106.09685) with peft: a matrix W [out, in] is frozen, and B A * alpha / rank is trained beside it.

A is [rank, in]; B is [out, rank] and starts at zero. Checkpoints contain only A and B. Merging reads them and the
child's weights a few rows at a time, so the result is written like any other, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.settings import DistillSettings

_WEIGHT = ".weight"
_WRAPPED = "base_model.model."
"""What peft calls the model that it wraps."""


def with_adapters(model: Any, tensors: Sequence[str], settings: DistillSettings) -> Any:
    """Wrap the model with peft: each of these matrices gets an adapter, and nothing else is trained."""
    from peft import LoraConfig, get_peft_model

    modules = [name.removesuffix(_WEIGHT) for name in tensors]
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=modules, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def bare(model: Any) -> Any:
    """Return the model itself if peft wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Merged:
    """The weights of a child with the adapters of a checkpoint merged into them.

    Args:
        dtype: of what is read. Sums are computed in float64; in narrower dtypes, a row has the same bits whether it is
            read alone or with others.
    """

    def __init__(self, child: Checkpoint, folder: Path, settings: DistillSettings, dtype: torch.dtype) -> None:
        self.folder, self.tensors = folder, child.tensors
        self._child, self._dtype = child, dtype
        self._scale = settings.lora_alpha / settings.lora_rank
        self._adapters = load_file(folder / "adapter_model.safetensors")

    def read(self, name: str) -> Tensor:
        """Return the whole tensor."""
        return self._merge(self._child.read(name), name, slice(None))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._merge(self._child.rows(name, start, stop), name, slice(start, stop))

    def _merge(self, weight: Tensor, name: str, rows: slice) -> Tensor:
        module = _WRAPPED + name.removesuffix(_WEIGHT)
        up = self._adapters.get(f"{module}.lora_B.weight")
        if up is None:
            return weight.to(self._dtype)
        down = self._adapters[f"{module}.lora_A.weight"]
        return weight.double().addmm_(up[rows].double(), down.double(), alpha=self._scale).to(self._dtype)
