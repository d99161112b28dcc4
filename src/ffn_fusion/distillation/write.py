"""The distilled child, a checkpoint like any other: weights in the child's dtypes, all else as the child has it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.reader import Checkpoint, inside, torch_dtype
from ffn_fusion.checkpoint.safetensors_file import CHUNK_BYTES, TensorInfo
from ffn_fusion.checkpoint.shards import MAX_SHARD_BYTES, OutputTensor, plan_shards, write_shards
from ffn_fusion.checkpoint.sidecars import sidecar_files
from ffn_fusion.errors import TrainingError
from ffn_fusion.surgery.build import BLUEPRINT
from ffn_fusion.surgery.child_config import MODELING_FILES
from ffn_fusion.surgery.repairs import RECORD

_MARGIN = 64 << 20


class Weights(Protocol):
    """Trained weights: those of a checkpoint folder, or the child's with adapters merged into them."""

    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> Tensor:
        """The whole tensor."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of it."""


class AsStored:
    """Trained weights as the child stores them, rounded to its dtypes: what is scored is what is written."""

    def __init__(self, child: Checkpoint, weights: Weights) -> None:
        self.spec, self.tensors = child.spec, child.tensors
        self._weights = weights

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self._weights.read(name).to(torch_dtype(self.tensors[name].dtype))


def write_distilled(
    child: Checkpoint,
    weights: Weights,
    record: Mapping[str, Any],
    target: Path,
    *,
    model_card: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write ``weights`` to ``target`` as a child: whole, or not at all, streamed.

    Args:
        child: what was distilled; dtypes, tokenizer, config, blueprint and the record of its repair are its own.
        weights: the same tensors, trained.
        record: what was done (``distillation.json``).
        on_bytes: called with every count of bytes written.

    Raises:
        TrainingError: a weight is NaN or infinite, or too large for the child's dtype. OutputError: the target exists,
            overlaps the child, or the disk is too small.
    """
    staging.check_target(target, child.folder)
    tensors = [
        OutputTensor(name, info.dtype, info.shape, _pieces(weights, name, info.dtype))
        for name, info in child.tensors.items()
    ]
    staging.check_space(target, sum(tensor.nbytes for tensor in tensors) + _MARGIN)

    def refuse(name: str) -> None:
        raise TrainingError(f"tensor {name} isn't finite as {child.tensors[name].dtype}", "lower the learning rate")

    before = staging.read_manifest(child.folder) or {}
    identity = distilled_id(child.folder, record, max_shard_bytes)
    with staging.staged(target, hashlib.sha256(f"{identity}\n{weights.folder}".encode()).hexdigest()) as stage:
        write_shards(stage, plan_shards(tensors, max_shard_bytes), on_bytes, refuse)
        for name, content in _beside(child.folder):
            stage.write(name, content)
        stage.write(staging.DISTILLATION, (json.dumps(record, indent=1) + "\n").encode())
        if model_card:
            stage.write(staging.MODEL_CARD, model_card.encode())
        stage.commit(_manifest(child, before, record, identity))
    return target


def _manifest(child: Checkpoint, before: Mapping[str, Any], record: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """As a build's, with the child that was distilled."""
    return {
        "made_by": f"ffn-fusion {version('ffn-fusion')}",
        "build": identity,
        "parent": before.get("parent") or record["parent"],
        "distilled": {"build": before.get("build"), "fingerprint": child.fingerprint},
    }


def _beside(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file beside the weights that stays as it is, and the code that loads it."""
    yield from sidecar_files(folder)
    for name in ("config.json", BLUEPRINT, RECORD):
        if (folder / name).is_file():
            yield name, inside(folder, name).read_bytes()
    for name, path in MODELING_FILES.items():
        yield name, path.read_bytes()


def _pieces(source: Weights, name: str, dtype: str) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        count = source.tensors[name].shape[0]
        step = max(1, CHUNK_BYTES // source.tensors[name].row_bytes)
        for start in range(0, count, step):
            part = source.rows(name, start, min(start + step, count)).to(torch_dtype(dtype))
            yield part.contiguous().view(torch.uint8).numpy().data.cast("B")

    return pieces


def distilled_id(child: Path, record: Mapping[str, Any], max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """What was made of what, and how; stands in the manifest."""
    before = staging.read_manifest(child) or {}
    words = [before.get("build"), record, max_shard_bytes, version("ffn-fusion")]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
