"""Write a distilled child: a checkpoint like any other, with weights in the child's dtypes and all else unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.computed import ModelTensor
from ffn_fusion.checkpoint.reader import Checkpoint, read_folder_spec, torch_dtype
from ffn_fusion.checkpoint.sidecars import sidecar_files
from ffn_fusion.checkpoint.staging import MAX_SHARD_BYTES
from ffn_fusion.checkpoint.write import json_file, output_tensors, write_checkpoint
from ffn_fusion.errors import TrainingError
from ffn_fusion.surgery.build import BLUEPRINT
from ffn_fusion.surgery.child_config import form_of, modeling_files
from ffn_fusion.surgery.repairs import RECORD


class Weights(Protocol):
    """Trained weights: those of a checkpoint folder, or the child's with adapters merged into them."""

    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, ModelTensor]: ...

    def read(self, name: str) -> Tensor:
        """Return the whole tensor."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows ``start..stop-1`` of a tensor."""


class AsStored:
    """Trained weights as the child stores them, rounded to its dtypes: what is scored is what is written."""

    def __init__(self, child: Checkpoint, weights: Weights) -> None:
        self.spec, self.tensors = child.spec, child.tensors
        self._weights = weights

    def read(self, name: str) -> Tensor:
        """Return the whole tensor."""
        return self._weights.read(name).to(torch_dtype(self.tensors[name].dtype))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows ``start..stop-1`` of a tensor."""
        return self._weights.rows(name, start, stop).to(torch_dtype(self.tensors[name].dtype))


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
        child: the child that was distilled, which provides dtypes, tokenizer, config, blueprint and repair record.
        weights: the same tensors, trained.
        record: what was done (``distillation.json``).
        on_bytes: called with every number of bytes written.

    Raises:
        TrainingError: a weight is NaN or infinite, or too large for the child's dtype. OutputError: the target exists,
            overlaps the child, or the disk is too small.
    """
    before = staging.read_manifest(child.folder) or {}
    manifest = {
        "build": distilled_id(child.folder, record, max_shard_bytes),
        "parent": before.get("parent") or record["parent"],
        "distilled": {"build": before.get("build"), "fingerprint": child.fingerprint},
    }
    return write_checkpoint(
        output_tensors(AsStored(child, weights)),
        _files(child.folder, record, model_card),
        manifest,
        target,
        parent=child.folder,
        state=str(weights.folder),
        max_shard_bytes=max_shard_bytes,
        on_bytes=on_bytes,
        on_nonfinite=lambda tensor: TrainingError(
            f"tensor {tensor.name} isn't finite as {tensor.dtype}", "lower the learning rate"
        ),
    )


def _files(folder: Path, record: Mapping[str, Any], model_card: str) -> Iterator[tuple[str, bytes]]:
    """Yield the child's files besides its weights, and the record of its distillation."""
    yield from sidecar_files(folder, "config.json", BLUEPRINT, RECORD)
    yield from modeling_files(form_of(read_folder_spec(folder)))
    yield json_file(staging.DISTILLATION, record, indent=1)
    if model_card:
        yield staging.MODEL_CARD, model_card.encode()


def distilled_id(child: Path, record: Mapping[str, Any], max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Return the id of a distilled child in its manifest: a hash of the child and of what was done."""
    before = staging.read_manifest(child) or {}
    words = [before.get("build"), record, max_shard_bytes, version("ffn-fusion")]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
