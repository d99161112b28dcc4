"""Write a checkpoint anew in a form that engines load. What it computes stays the same, to the last bit where an
engine adds up in the same order: tensors are copied, repeated, or padded with zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.reader import Checkpoint, inside, torch_dtype
from ffn_fusion.checkpoint.safetensors_file import CHUNK_BYTES
from ffn_fusion.checkpoint.shards import MAX_SHARD_BYTES, OutputTensor, plan_shards, write_shards
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
from ffn_fusion.portability.rewrite import Rewrite, RewrittenBlock
from ffn_fusion.portability.rule import ENGINES, Engine
from ffn_fusion.portability.shipped import tidy_rotary
from ffn_fusion.surgery.build import BLUEPRINT, files_state
from ffn_fusion.surgery.child_config import MODELING_FILES, child_config
from ffn_fusion.surgery.fuse_ffn import fuse_columns, fuse_rows
from ffn_fusion.surgery.repairs import RECORD

FIXES = "fixes.json"
"""What was rewritten and for which engines; lies in the fixed checkpoint beside the unfixed child's blueprint."""
_CARRIED = (BLUEPRINT, RECORD, staging.DISTILLATION)
_MARGIN = 64 << 20


class Source(Protocol):
    """What can be rewritten: a ``Checkpoint``, or a ``Child`` that isn't built yet."""

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
    """``source`` rewritten as ``rewrite`` says, tensor by tensor, each computed when it's asked for."""

    def __init__(self, source: Source, rewrite: Rewrite) -> None:
        self.source = source
        self.rewrite = rewrite
        self.spec = rewrite.spec

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
        tensor = self.tensors[name]
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
        dtype: str = self.source.tensors[source].dtype
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
    staging.check_target(target, checkpoint.folder)
    tensors = [OutputTensor(t.name, t.dtype, t.shape, _pieces(fixed, t)) for t in fixed.tensors.values()]
    staging.check_space(target, sum(tensor.nbytes for tensor in tensors) + _MARGIN)

    def refuse(name: str) -> None:
        source = fixed.tensors[name].source
        raise CheckpointError(f"{checkpoint.name}: tensor {source} holds NaN or infinity", "get the weights again")

    identity = _identity(checkpoint, engines, max_shard_bytes)
    key = hashlib.sha256(f"{identity}\n{files_state(checkpoint)}".encode()).hexdigest()
    about = {"engines": list(engines), "steps": list(rewrite.steps)}
    with staging.staged(target, key) as stage:
        write_shards(stage, plan_shards(tensors, max_shard_bytes), on_bytes, refuse)
        for name, content in _beside(checkpoint.folder):
            stage.write(name, content)
        stage.write("config.json", (json.dumps(_config(fixed.spec), indent=2) + "\n").encode())
        stage.write(FIXES, (json.dumps(about, indent=1) + "\n").encode())
        stage.commit(_manifest(checkpoint, identity, about))
    return target


def read_fixes(folder: Path) -> tuple[Engine, ...] | None:
    """The engines that a checkpoint was fixed for; None if it's as it was built.

    Raises:
        CheckpointError: ``fixes.json`` can't be read.
    """
    path = folder / FIXES
    if not path.is_file():
        return None
    try:
        named = set(json.loads(inside(folder, FIXES).read_bytes())["engines"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read", "fix the checkpoint again") from error
    return tuple(engine for engine in ENGINES if engine in named)


def _config(spec: ModelSpec) -> dict[str, Any]:
    return tidy_rotary(child_config(replace(spec, config=tidy_rotary(spec.config))))


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
    """Every file beside the weights: what any child passes on, how this one was made, and the code that loads it."""
    yield from sidecar_files(folder)
    for name in (*_CARRIED, staging.MODEL_CARD):
        if (folder / name).is_file():
            yield name, inside(folder, name).read_bytes()
    for name, path in MODELING_FILES.items():
        yield name, path.read_bytes()


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
