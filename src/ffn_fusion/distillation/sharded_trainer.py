"""The trainer of a sharded child: weights and optimiser state are loaded and saved shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer import SCHEDULER_NAME

from ffn_fusion.checkpoint.safetensors_file import make_header
from ffn_fusion.checkpoint.weight_files import SINGLE
from ffn_fusion.distillation.sharding import gathered
from ffn_fusion.distillation.trainer import DistillTrainer
from ffn_fusion.processes import current
from ffn_fusion.surgery.child_config import modeling_files

_NAMES = {torch.float32: "F32", torch.float64: "F64"}


class _Ready(nn.Module):
    """A wrapper around a sharded model, so that the Trainer and accelerate leave it as it is."""

    def __init__(self, model: Any, bf16: bool) -> None:
        super().__init__()
        self.module, self._bf16 = model, bf16

    def forward(self, **inputs: Any) -> Any:
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16, cache_enabled=False):
            return self.module(**inputs)


class ShardedTrainer(DistillTrainer):
    """Trainer for a model from ``load_sharded``, which already holds the weights to start or to resume from."""

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return _Ready(self.model, self._settings.bf16)

    def _move_model_to_device(self, model: Any, device: Any) -> Any:
        return model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        write_weights(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: the weights were read when the model was created."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        torch.save(_local(self.optimizer.state_dict()), self._optimizer_file(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = torch.load(self._optimizer_file(checkpoint), map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.load_state_dict(_spread(state, parameters))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _optimizer_file(self, folder: str) -> Path:
        here = current()
        return Path(folder, f"optimizer-{here.rank}-of-{here.world}.pt")


def write_weights(model: Any, folder: Path) -> None:
    """Write a sharded model to a folder; the first process writes a few rows at a time, so none holds more of it.

    Raises:
        OSError: on the first process.
    """
    stream = _stream(model)
    try:
        if not current().rank:
            folder.mkdir(parents=True, exist_ok=True)
            model.config.save_pretrained(folder)
            for name, content in modeling_files(model.config.model_type):
                (folder / name).write_bytes(content)
            with (folder / SINGLE).open("wb") as file:
                file.writelines(stream)
    finally:
        for _ in stream:  # even if the file failed: the other processes have rows to send
            pass


def _stream(model: Any) -> Iterator[bytes | memoryview]:
    tensors = list(model.named_parameters())
    yield make_header((name, _NAMES[p.dtype], tuple(p.shape)) for name, p in tensors)
    for _, parameter in tensors:
        for part in gathered(parameter):
            yield part.view(torch.uint8).numpy().data.cast("B")


def _local(state: Any) -> Any:
    """Return an optimiser state that contains this process's shards instead of distributed tensors."""
    from torch.distributed.tensor import DTensor

    def local(value: Any) -> Any:
        return value.to_local() if isinstance(value, DTensor) else value

    states = {i: {key: local(value) for key, value in row.items()} for i, row in state["state"].items()}
    return {"state": states, "param_groups": state["param_groups"]}


def _spread(state: Any, parameters: list[Any]) -> Any:
    """Return an optimiser state whose shards are parts of tensors distributed like the parameters; inverse of
    ``_local``.
    """
    from torch.distributed.tensor import DTensor

    def spread(value: Any, like: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dim():
            return value
        value = value.to(like.device)
        return DTensor.from_local(
            value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    states = {i: {key: spread(value, parameters[i]) for key, value in row.items()} for i, row in state["state"].items()}
    return {"state": states, "param_groups": state["param_groups"]}
