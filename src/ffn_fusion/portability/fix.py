"""Write a checkpoint anew in a form that engines load. What it computes stays the same, to the last bit where an
engine adds up in the same order: tensors are copied, repeated, or padded with zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.reader import Checkpoint, inside, torch_dtype
from ffn_fusion.checkpoint.safetensors_file import CHUNK_BYTES, ITEM_SIZES, chunks
from ffn_fusion.checkpoint.shards import MAX_SHARD_BYTES, OutputTensor, finite, plan_shards, write_shards
from ffn_fusion.checkpoint.sidecars import sidecar_files
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import (
    ATTENTION_NORM,
    EMBEDDING,
    FFN_NORM,
    Shape,
    block_prefix,
    model_tensors,
)
from ffn_fusion.portability.history import FIXES, REWRITTEN, Rewriting, history_json, read_fixes, read_history
from ffn_fusion.portability.rewrite import Rewrite, RewrittenBlock
from ffn_fusion.portability.rule import Engine
from ffn_fusion.portability.shipped import tidy_rotary
from ffn_fusion.surgery.build import BLUEPRINT, files_state
from ffn_fusion.surgery.child_config import MODELING_FILES, child_config
from ffn_fusion.surgery.fuse_ffn import fuse_columns, fuse_rows
from ffn_fusion.surgery.repairs import RECORD

__all__ = ["Fixed", "fix", "native_config", "native_files", "read_fixes", "write_rewritten"]
_CARRIED = (BLUEPRINT, RECORD, staging.DISTILLATION)
_MARGIN = 64 << 20


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
        places = {block_prefix(i): block for i, block in enumerate(self.rewrite.blocks)}
        return {name: self._tensor(name, shape, places) for name, shape in model_tensors(self.spec).items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1``, from just the rows of the source that they need."""
        return self._rows(self.tensors[name], start, stop).to(torch_dtype(self.tensors[name].dtype))

    @property
    def nbytes(self) -> int:
        return sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in self.tensors.values())

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

    def _tensor(self, name: str, shape: Shape, places: Mapping[str, RewrittenBlock]) -> FixedTensor:
        prefix = next((prefix for prefix in places if name.startswith(prefix)), None)
        if prefix is None:
            return FixedTensor(name, self._dtype(name), shape, name)
        block, inner = places[prefix], name.removeprefix(prefix)
        is_attention = inner == ATTENTION_NORM or inner.startswith("self_attn.")
        origin = block.attention if is_attention else block.ffn
        if origin is None:
            fill = 1.0 if inner in (ATTENTION_NORM, FFN_NORM) else 0.0
            return FixedTensor(name, self._dtype(EMBEDDING), shape, None, fill=fill)
        source = block_prefix(origin) + inner
        repeat = 1
        if inner.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            repeat = shape[0] // self.source.tensors[source].shape[0]
        return FixedTensor(name, self._dtype(source), shape, source, repeat)

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

    def files() -> Iterator[tuple[str, bytes]]:
        yield from _beside(checkpoint.folder)
        yield from native_files(fixed.spec)
        yield FIXES, (json.dumps(about, indent=1) + "\n").encode()

    identity = _identity(checkpoint, engines, max_shard_bytes)
    manifest = _manifest(checkpoint, identity, about)
    if history := read_history(checkpoint.folder):
        manifest[REWRITTEN] = history_json([*history, Rewriting(engines=tuple(engines))])
    return write_rewritten(
        fixed, checkpoint, target, files(), manifest, max_shard_bytes=max_shard_bytes, on_bytes=on_bytes
    )


def write_rewritten(
    fixed: Fixed,
    checkpoint: Checkpoint,
    target: Path,
    files: Iterable[tuple[str, bytes]],
    manifest: Mapping[str, Any],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write ``checkpoint`` rewritten as ``fixed``, and the files beside the weights: whole, or not at all, streamed.

    Args:
        manifest: what the manifest says; under ``build`` what is being written, so that only the same resumes.

    Raises:
        CheckpointError: a weight is NaN or infinite, or too large for its new dtype.
        OutputError: the target exists, overlaps the checkpoint, or the disk is too small.
    """
    staging.check_target(target, checkpoint.folder)
    tensors = [OutputTensor(t.name, t.dtype, t.shape, _pieces(fixed, t)) for t in fixed.tensors.values()]
    staging.check_space(target, fixed.nbytes + _MARGIN)

    def refuse(name: str) -> None:
        tensor = fixed.tensors[name]
        assert tensor.source is not None, "zeros and ones are finite"
        info = checkpoint.tensors[tensor.source]
        place = f"{checkpoint.name}: tensor {tensor.source}"
        if all(finite(piece, info.dtype) for piece in chunks(info)):
            raise CheckpointError(
                f"{place} has values too large for {tensor.dtype}", "choose bf16, f32 or its own dtype"
            )
        raise CheckpointError(f"{place} holds NaN or infinity", "get the weights again")

    key = hashlib.sha256(f"{manifest['build']}\n{files_state(checkpoint)}".encode()).hexdigest()
    with staging.staged(target, key) as stage:
        write_shards(stage, plan_shards(tensors, max_shard_bytes), on_bytes, refuse)
        for name, content in files:
            stage.write(name, content)
        stage.commit(dict(manifest))
    return target


def native_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json in the Nemotron-NAS form, with rotary settings as every engine reads them."""
    return tidy_rotary(child_config(replace(spec, config=tidy_rotary(spec.config))))


def native_files(spec: ModelSpec) -> Iterator[tuple[str, bytes]]:
    """config.json in the Nemotron-NAS form, and the files of code that travel with it."""
    yield "config.json", (json.dumps(native_config(spec), indent=2) + "\n").encode()
    for name, path in MODELING_FILES.items():
        yield name, path.read_bytes()


def _pieces(fixed: Fixed, tensor: FixedTensor) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        count = tensor.shape[0]
        row_bytes = max(1, OutputTensor(tensor.name, tensor.dtype, tensor.shape, lambda: iter(())).nbytes // count)
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, count, step):
            rows = fixed.rows(tensor.name, start, min(start + step, count))
            yield rows.contiguous().view(torch.uint8).numpy().data.cast("B")

    return pieces


def _beside(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What any child passes on, and how this one was made."""
    yield from sidecar_files(folder)
    for name in (*_CARRIED, staging.MODEL_CARD):
        if (folder / name).is_file():
            yield name, inside(folder, name).read_bytes()


def _identity(checkpoint: Checkpoint, engines: Sequence[Engine], max_shard_bytes: int) -> str:
    """What is being written, the same on every machine."""
    words = (checkpoint.fingerprint, *engines, str(max_shard_bytes), version("ffn-fusion"))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _manifest(checkpoint: Checkpoint, identity: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """As a build's, with what was fixed; the parent is the one that the child was made of."""
    before = staging.read_manifest(checkpoint.folder) or {}
    return {
        "made_by": f"ffn-fusion {version('ffn-fusion')}",
        "build": identity,
        "parent": before.get("parent"),
        "fixed": {**about, "build": before.get("build"), "fingerprint": checkpoint.fingerprint},
    }
