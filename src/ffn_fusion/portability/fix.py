"""Write a checkpoint anew in a form that engines load. What it computes stays the same, to the last bit where an
engine adds up in the same order: tensors are copied, repeated, or padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.checkpoint.safetensors_file import ITEM_SIZES, TensorInfo
from ffn_fusion.checkpoint.shards import OutputTensor
from ffn_fusion.checkpoint.sidecars import child_files
from ffn_fusion.checkpoint.staging import MAX_SHARD_BYTES
from ffn_fusion.checkpoint.write import build_key, json_file, output_tensors, write_checkpoint
from ffn_fusion.families import ModelSpec, names_of
from ffn_fusion.families.family import Shape
from ffn_fusion.families.layout import block_tensors, model_tensors
from ffn_fusion.portability.history import FIXES, REWRITTEN, Rewriting, history_json, read_fixes, read_history
from ffn_fusion.portability.rewrite import Rewrite
from ffn_fusion.portability.rule import Engine
from ffn_fusion.surgery.build import BLUEPRINT
from ffn_fusion.surgery.child_config import child_config, form_of, modeling_files
from ffn_fusion.surgery.fuse_ffn import fuse_columns, fuse_rows
from ffn_fusion.surgery.repairs import RECORD

__all__ = ["Fixed", "fix", "native_files", "read_fixes"]
_CARRIED = (BLUEPRINT, RECORD, staging.DISTILLATION)


class Source(Protocol):
    """What can be rewritten: a ``Checkpoint``, a ``Child`` that isn't built yet, or what was rewritten already."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class FixedTensor:
    """How a tensor comes about: from ``source`` with every group of ``head_dim`` rows ``repeat`` times, then zeros up
    to ``shape``; or, without a source, ``fill`` everywhere.
    """

    name: str
    dtype: str
    shape: Shape
    source: str | None
    repeat: int = 1
    fill: float = 0.0


class Fixed:
    """``source`` rewritten as ``rewrite`` says, tensor by tensor, each computed when it's asked for.

    Args:
        dtype: of every tensor; None leaves each its own.
    """

    def __init__(self, source: Source, rewrite: Rewrite, dtype: str | None = None) -> None:
        self.source = source
        self.rewrite = rewrite
        self.spec = rewrite.spec
        self.dtype = dtype

    @cached_property
    def tensors(self) -> Mapping[str, FixedTensor]:
        """Every tensor, in the order of a forward pass."""
        names, had = names_of(self.spec), names_of(self.source.spec)
        outer = {names.embedding: had.embedding, names.final_norm: had.final_norm, names.head: had.head}
        inside = {tensor.name: tensor for i in range(len(self.spec.blocks)) for tensor in self._block_tensors(i)}
        return {
            name: inside.get(name) or FixedTensor(name, self._dtype(outer[name]), shape, outer[name])
            for name, shape in model_tensors(self.spec).items()
        }

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1``, from just the rows of the source that they need."""
        return self._rows(self.tensors[name], start, stop).to(torch_dtype(self.tensors[name].dtype))

    @property
    def nbytes(self) -> int:
        return sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in self.tensors.values())

    def output(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """The tensors as streams of bytes, where ``source`` is this checkpoint; those that stay are its bytes."""

        def sources(name: str) -> tuple[TensorInfo, ...]:
            source = self.tensors[name].source
            return () if source is None else checkpoint.stored(source)

        def is_copy(name: str) -> bool:
            tensor = self.tensors[name]
            return tensor.repeat == 1 and [(tensor.dtype, tensor.shape)] == [(s.dtype, s.shape) for s in sources(name)]

        return output_tensors(self, sources, is_copy)

    def _rows(self, tensor: FixedTensor, start: int, stop: int) -> Tensor:
        if tensor.source is None:
            return torch.full((stop - start, *tensor.shape[1:]), tensor.fill, dtype=torch_dtype(tensor.dtype))
        if tensor.repeat > 1:
            return self._repeated(tensor, start, stop)
        had: Shape = tuple(self.source.tensors[tensor.source].shape)
        if had[1:] != tensor.shape[1:]:
            return fuse_columns([self.source.rows(tensor.source, start, stop)], tensor.shape[1] - had[1])
        first, last = min(start, had[0]), min(stop, had[0])
        return fuse_rows([self.source.rows(tensor.source, first, last)], stop - start - (last - first))

    def _block_tensors(self, i: int) -> Iterator[FixedTensor]:
        """A block's tensors: those of the block that it comes from; what that one lacks is zeros, or a norm's ones."""
        names, had = names_of(self.spec), names_of(self.source.spec)
        for part, tensor in block_tensors(self.spec, i):
            name, origin = names.of(i, tensor.key), self.rewrite.blocks[i].origin(part)
            source = had.of(origin, tensor.key) if origin is not None else None
            if source not in self.source.tensors:
                fill = 1.0 if tensor.role == "norm scale" else 0.0
                yield FixedTensor(name, self._dtype(had.embedding), tensor.shape, None, fill=fill)
                continue
            assert source is not None
            repeat = 1
            if tensor.along == "KV heads":
                repeat = tensor.shape[0] // self.source.tensors[source].shape[0]
            yield FixedTensor(name, self._dtype(source), tensor.shape, source, repeat)

    def _dtype(self, source: str) -> str:
        dtype: str = self.dtype or self.source.tensors[source].dtype
        return dtype

    def _repeated(self, tensor: FixedTensor, start: int, stop: int) -> Tensor:
        """Every K or V head ``repeat`` times: query heads keep reading the same keys and values."""
        assert tensor.source is not None
        at, d = torch.arange(start, stop), self.spec.head_dim
        wanted = at // d // tensor.repeat * d + at % d
        first, last = int(wanted.min()), int(wanted.max())
        return self.source.rows(tensor.source, first, last + 1)[wanted - first]


def fix(
    checkpoint: Checkpoint,
    rewrite: Rewrite,
    engines: Sequence[Engine],
    target: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write ``checkpoint`` as ``rewrite`` says: whole, or not at all, streamed; the checkpoint itself stays as it is.

    The tokenizer, the model card and the record of how the child was made travel along; ``fixes.json`` says what was
    rewritten. A killed call resumes at the last finished shard.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        OutputError: the target exists, overlaps the checkpoint, or the disk is too small.
    """
    fixed = Fixed(checkpoint, rewrite)
    about = {"engines": list(engines), "steps": list(rewrite.steps)}
    before = staging.read_manifest(checkpoint.folder) or {}
    manifest = {
        "build": build_key(checkpoint.fingerprint, *engines, max_shard_bytes),
        "parent": before.get("parent"),  # the one that the child was made of
        "fixed": {**about, "build": before.get("build"), "fingerprint": checkpoint.fingerprint},
    }
    if history := read_history(checkpoint.folder):
        manifest[REWRITTEN] = history_json([*history, Rewriting(engines=tuple(engines))])
    return write_checkpoint(
        fixed.output(checkpoint),
        _files(checkpoint, fixed.spec, about),
        manifest,
        target,
        parent=checkpoint.folder,
        state=checkpoint.files_state,
        max_shard_bytes=max_shard_bytes,
        on_bytes=on_bytes,
    )


def _files(checkpoint: Checkpoint, spec: ModelSpec, about: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield from child_files(checkpoint, *_CARRIED, staging.MODEL_CARD)
    yield from native_files(spec)
    yield json_file(FIXES, about, indent=1)


def native_files(spec: ModelSpec) -> Iterator[tuple[str, bytes]]:
    """config.json in the Nemotron-NAS form, and the files of code that travel with it."""
    yield json_file("config.json", child_config(spec))
    yield from modeling_files(form_of(spec))
