"""Sharded safetensors, written as a stream: tensors arrive as pieces of bytes, hashed and checked on their way.

Three things happen side by side, since each is slow alone: this thread produces the next piece (reading or
computing), a second one hashes, a third one writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ffn_fusion.checkpoint.direct_file import DirectFile
from ffn_fusion.checkpoint.reader import INDEX, SINGLE
from ffn_fusion.checkpoint.safetensors_file import ITEM_SIZES, make_header
from ffn_fusion.checkpoint.staging import Staging

MAX_SHARD_BYTES = 5_000_000_000
_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0xFFE << 52),
    "F32": (np.uint32, 0xFF << 24),
    "F16": (np.uint16, 0xF800),
    "BF16": (np.uint16, 0xFF00),
}
_LIVE_PIECES = 64  # a stall of the disk on one side shouldn't reach the other


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write. ``pieces`` yields its bytes in order, row-major, in pieces of a few megabytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]


def plan_shards(tensors: Sequence[OutputTensor], limit: int = MAX_SHARD_BYTES) -> dict[str, list[OutputTensor]]:
    """File name -> its tensors: filled in order up to ``limit`` bytes, a larger tensor has a file to itself."""
    groups: list[list[OutputTensor]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(tensor)
        room -= tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def write_shards(
    staging: Staging,
    shards: dict[str, list[OutputTensor]],
    on_bytes: Callable[[int], None] = lambda count: None,
    on_nonfinite: Callable[[str], None] = lambda name: None,
) -> None:
    """Write every shard that isn't finished yet, and the index.

    Args:
        on_bytes: called with the number of bytes that came through (or were there already).
        on_nonfinite: called with the name of a tensor that holds NaN or infinity; expected to raise.
    """
    for name, tensors in shards.items():
        if staging.finished(name):
            on_bytes(sum(tensor.nbytes for tensor in tensors))
            continue
        staging.finish(name, _write_shard(staging.folder / name, tensors, on_bytes, on_nonfinite))
    if list(shards) != [SINGLE]:
        weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
        total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        staging.write(INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _write_shard(
    path: Path,
    tensors: Sequence[OutputTensor],
    on_bytes: Callable[[int], None],
    on_nonfinite: Callable[[str], None],
) -> str:
    with closing(DirectFile(path)) as file, _Sink(file) as sink:
        sink.take(make_header((tensor.name, tensor.dtype, tensor.shape) for tensor in tensors))
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces():
                if not finite(piece, tensor.dtype):
                    on_nonfinite(tensor.name)
                sink.take(piece)
                written += len(piece)
                on_bytes(len(piece))
            assert written == tensor.nbytes, (tensor.name, written, tensor.nbytes)
        return sink.finish()


class _Sink:
    """Hashes and writes pieces, each in a thread of its own, while the caller makes the next."""

    def __init__(self, file: DirectFile) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._live: list[Future[object]] = []
        self._hasher, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._hasher, self._writer):
            pool.shutdown(cancel_futures=True)

    def take(self, piece: bytes | memoryview) -> None:
        """Hash and write a piece; waits while too many are on their way."""
        while len(self._live) >= 2 * _LIVE_PIECES:
            self._live.pop(0).result()
        self._live.append(self._hasher.submit(self._digest.update, piece))
        self._live.append(self._writer.submit(self._file.write, piece))

    def finish(self) -> str:
        """Wait until all of it is hashed and on the disk; the sha256."""
        self._live.append(self._writer.submit(self._file.finish))
        for future in self._live:
            future.result()
        return self._digest.hexdigest()


def finite(piece: memoryview | bytes, dtype: str) -> bool:
    """Whether no value is NaN or infinite: the exponent bits are all ones just for those. One fast pass over bits."""
    kind, limit = _EXPONENT[dtype]
    bits = np.frombuffer(piece, kind)
    step = 1 << 16  # stays in the second-level cache
    room = np.empty(min(step, bits.size), kind)
    for start in range(0, bits.size, step):
        part = bits[start : start + step]
        if np.left_shift(part, kind(1), out=room[: part.size]).max() >= limit:
            return False
    return True
