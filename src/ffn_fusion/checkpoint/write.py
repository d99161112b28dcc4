"""The one writer of checkpoints: tensors as streams, small files beside them, and a manifest of it all.

What is written appears whole or not at all, and a killed call resumes at the last finished shard. Who writes a
checkpoint says what its tensors are; how they get to the disk is said here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.reader import torch_dtype
from ffn_fusion.checkpoint.safetensors_file import CHUNK_BYTES, TensorInfo, chunks
from ffn_fusion.checkpoint.shards import (
    NotFiniteError,
    OutputTensor,
    finite,
    plan_shards,
    write_shards,
)
from ffn_fusion.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_MARGIN = 64 << 20  # tokenizer, config and the file system's own


class Rows(Protocol):
    """Tensors that can be read some rows at a time. Those of ``tensors`` have a name, a dtype and a shape."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1`` of a tensor, in its dtype."""


def output_tensors(
    source: Rows,
    sources_of: Callable[[str], tuple[TensorInfo, ...]] = lambda name: (),
    is_copy: Callable[[str], bool] = lambda name: False,
) -> list[OutputTensor]:
    """The tensors of ``source`` as streams of bytes, each computed when it is written.

    Args:
        sources_of: the stored tensors that one of them is made of.
        is_copy: whether it's the first of those, byte by byte.
    """
    found = []
    for name, tensor in source.tensors.items():
        sources = sources_of(name)
        content = sources[0] if is_copy(name) else _pieces(source, name)
        found.append(OutputTensor(name, tensor.dtype, tuple(tensor.shape), content, sources))
    return found


def write_checkpoint(
    tensors: Sequence[OutputTensor],
    files: Iterable[tuple[str, bytes]],
    manifest: Mapping[str, Any],
    target: Path,
    *,
    parent: Path | None = None,
    state: str = "",
    max_shard_bytes: int = staging.MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda count: None,
    on_nonfinite: Callable[[OutputTensor], Exception] | None = None,
) -> Path:
    """Write a checkpoint to ``target``: whole, or not at all. A killed call resumes at the last finished shard.

    Args:
        files: name and content of everything beside the weights.
        manifest: what the manifest says. Under ``build`` it names what is written, so that only the same resumes.
        parent: the folder that the weights come from; the target may not overlap it.
        state: what the inputs were, beyond what ``build`` says: names, sizes and ages of files.
        on_bytes: called with every count of bytes written.
        on_nonfinite: the error for a tensor that holds NaN or infinity; by default one that names the stored tensor.

    Raises:
        CheckpointError: a weight is NaN or infinite, or too large for its dtype.
        OutputError: the target exists, overlaps the input, or the disk is too small.
    """
    staging.check_target(target, parent)
    staging.check_space(target, sum(tensor.nbytes for tensor in tensors) + _MARGIN)
    key = hashlib.sha256(f"{manifest['build']}\n{state}".encode()).hexdigest()
    with _one_thread(), staging.staged(target, key) as stage:
        try:
            write_shards(stage, plan_shards(tensors, max_shard_bytes), on_bytes)
        except NotFiniteError as error:
            raise (on_nonfinite or _explain)(error.tensor) from error
        for name, content in files:
            stage.write(name, content)
        stage.commit({"made_by": f"ffn-fusion {version('ffn-fusion')}", **manifest})
    return target


def json_file(name: str, value: Any, indent: int = 2) -> tuple[str, bytes]:
    """Name and content of a JSON file."""
    return name, (json.dumps(value, indent=indent) + "\n").encode()


def build_key(*words: object) -> str:
    """A hash that names what is written, the same on every machine, from what it's made of and how."""
    return hashlib.sha256("\n".join(map(str, (*words, version("ffn-fusion")))).encode()).hexdigest()


def _pieces(source: Rows, name: str) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        import torch

        tensor = source.tensors[name]
        count, *rest = tensor.shape
        step = max(1, CHUNK_BYTES // max(1, torch.Size(rest).numel() * torch_dtype(tensor.dtype).itemsize))
        for start in range(0, count, step):
            rows = source.rows(name, start, min(start + step, count)).to(torch_dtype(tensor.dtype))
            yield rows.contiguous().view(torch.uint8).numpy().data.cast("B")

    return pieces


def _explain(tensor: OutputTensor) -> CheckpointError:
    """Which stored tensor brought in what isn't finite."""
    for info in tensor.sources:
        if any(not finite(piece, info.dtype) for piece in chunks(info)):
            return CheckpointError(
                f"{info.file}: tensor {info.name} holds NaN or infinity", "get the weights again, or correct them"
            )
    return CheckpointError(
        f"tensor {tensor.name} has values too large for {tensor.dtype}", "choose a wider dtype: bf16 or f32"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: checking, hashing and writing keep other cores busy, and torch's own threads
    would spin between one megabyte and the next.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
