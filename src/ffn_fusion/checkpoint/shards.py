"""Sharded safetensors, written as a stream, every byte of it checked and hashed on its way to the disk.

Four things happen side by side, since each is slow alone: this thread reads or computes the next block of the file, a
second one looks for values that aren't finite, a third one hashes, a fourth one writes. A tensor that is copied is read
straight into the block that is written.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffn_fusion.checkpoint.direct_file import DirectFile
from ffn_fusion.checkpoint.safetensors_file import ITEM_SIZES, TensorInfo, make_header, read_into
from ffn_fusion.checkpoint.staging import MAX_SHARD_BYTES, Staging
from ffn_fusion.checkpoint.weight_files import INDEX, SINGLE

_BITS: Mapping[str, tuple[type[np.signedinteger[Any]], type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.int64, np.uint64, 0x7FF << 52),
    "F32": (np.int32, np.uint32, 0xFF << 23),
    "F16": (np.int16, np.uint16, 0x1F << 10),
    "BF16": (np.int16, np.uint16, 0xFF << 7),
}
"""dtype -> integers of its size, and the bits of infinity."""
_EIGHT_BITS = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
"""The first value without its sign that isn't finite."""
_BLOCK_BYTES = 4 << 20  # a multiple of every disk's block size
_BLOCKS = 16  # on their way at once: a stall of the disk on one side shouldn't reach the other


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write.

    ``content`` is a stored tensor, copied byte by byte, or yields the bytes in order, row-major, in pieces of about a
    megabyte. ``sources`` are the stored tensors that it's made of, where that's known: what isn't finite is looked for
    there.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: TensorInfo | Callable[[], Iterator[memoryview]]
    sources: tuple[TensorInfo, ...] = ()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]


class NotFiniteError(Exception):
    """A tensor to write holds NaN or infinity."""

    def __init__(self, tensor: OutputTensor) -> None:
        super().__init__(tensor.name)
        self.tensor = tensor


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
    staging: Staging, shards: Mapping[str, list[OutputTensor]], on_bytes: Callable[[int], None] = lambda count: None
) -> None:
    """Write every shard that isn't finished yet, and the index.

    Args:
        on_bytes: called with the number of bytes that came through (or were there already).

    Raises:
        NotFiniteError: a tensor holds NaN or infinity.
    """
    for name, tensors in shards.items():
        if staging.finished(name):
            on_bytes(sum(tensor.nbytes for tensor in tensors))
            continue
        staging.finish(name, _write_shard(staging.folder / name, tensors, on_bytes))
    if list(shards) != [SINGLE]:
        weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
        total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        staging.write(INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _write_shard(path: Path, tensors: Sequence[OutputTensor], on_bytes: Callable[[int], None]) -> str:
    with closing(DirectFile(path)) as file, _Blocks(file) as blocks:
        blocks.put(make_header((tensor.name, tensor.dtype, tensor.shape) for tensor in tensors))
        for tensor in tensors:
            count = 0
            for written in blocks.read(tensor) if isinstance(tensor.content, TensorInfo) else blocks.compute(tensor):
                on_bytes(written)
                count += written
            assert count == tensor.nbytes, (tensor.name, count, tensor.nbytes)
        return blocks.finish()


class _Part(NamedTuple):
    """What of a block belongs to one tensor."""

    tensor: OutputTensor
    start: int
    stop: int


class _Blocks:
    """A file as a ring of blocks: the caller fills the next one while others are checked, hashed and written."""

    def __init__(self, file: DirectFile) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._checker, self._hasher, self._writer = (ThreadPoolExecutor(1) for _ in range(3))
        self._busy: deque[tuple[memoryview, list[Future[None]]]] = deque()
        self._block = memoryview(mmap.mmap(-1, _BLOCK_BYTES))
        self._filled = 0
        self._parts: list[_Part] = []
        self._cut = b""  # of a value that goes over the end of a block

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._checker, self._hasher, self._writer):
            pool.shutdown(cancel_futures=True)

    def put(self, content: bytes | memoryview, tensor: OutputTensor | None = None) -> None:
        """Copy some bytes into the file."""
        rest = memoryview(content)
        while rest:
            room = self._room(len(rest))
            room[:] = rest[: len(room)]
            self._fill(len(room), tensor)
            rest = rest[len(room) :]

    def compute(self, tensor: OutputTensor) -> Iterator[int]:
        """Take a tensor's bytes as they're computed; yields the number of bytes after each piece."""
        assert not isinstance(tensor.content, TensorInfo)
        for piece in tensor.content():
            self.put(piece, tensor)
            yield len(piece)

    def read(self, tensor: OutputTensor) -> Iterator[int]:
        """Read a stored tensor's bytes straight into the blocks; yields the number of bytes after each read."""
        assert isinstance(tensor.content, TensorInfo)
        rest = tensor.content.nbytes
        with tensor.content.file.open("rb", buffering=0) as file:
            file.seek(tensor.content.offset)
            while rest:
                room = self._room(rest)
                read_into(file, tensor.content, room)
                self._fill(len(room), tensor)
                rest -= len(room)
                yield len(room)

    def finish(self) -> str:
        """Wait until all of it is checked, hashed and on the disk; the sha256."""
        if self._filled:
            self._send()
        while self._busy:
            self._await_oldest()
        self._file.finish()
        return self._digest.hexdigest()

    def _room(self, count: int) -> memoryview:
        """Where the next ``count`` bytes, or the first of them, go."""
        return self._block[self._filled : self._filled + count]

    def _fill(self, count: int, tensor: OutputTensor | None) -> None:
        if tensor is not None:
            self._parts.append(_Part(tensor, self._filled, self._filled + count))
        self._filled += count
        if self._filled == _BLOCK_BYTES:
            self._send()
            free = self._await_oldest() if len(self._busy) == _BLOCKS else memoryview(mmap.mmap(-1, _BLOCK_BYTES))
            self._block, self._filled, self._parts = free, 0, []

    def _send(self) -> None:
        block = self._block[: self._filled]
        work = [
            self._checker.submit(self._check, block, self._parts),
            self._hasher.submit(self._digest.update, block),
            self._writer.submit(self._file.write, block),
        ]
        self._busy.append((self._block, work))

    def _await_oldest(self) -> memoryview:
        """A block that is done with."""
        block, work = self._busy.popleft()
        for future in work:
            future.result()
        return block

    def _check(self, block: memoryview, parts: Sequence[_Part]) -> None:
        for part in parts:
            values: memoryview | bytes = block[part.start : part.stop]
            if self._cut:
                values = self._cut + values
            whole = len(values) - len(values) % ITEM_SIZES[part.tensor.dtype]
            if not finite(values[:whole], part.tensor.dtype):
                raise NotFiniteError(part.tensor)
            self._cut = bytes(values[whole:])


def finite(piece: memoryview | bytes, dtype: str) -> bool:
    """Whether no value is NaN or infinite. Two passes that write nothing.

    Without their sign, infinity and NaN are the largest as whole numbers: among signed ones a positive number is the
    largest (where there is one), among unsigned ones a negative number.
    """
    if dtype in _EIGHT_BITS:
        return bool(((np.frombuffer(piece, np.uint8) & 0x7F) < _EIGHT_BITS[dtype]).all())
    signed, unsigned, infinity = _BITS[dtype]
    bits = np.frombuffer(piece, signed)
    if not bits.size:
        return True
    sign = 1 << (8 * bits.itemsize - 1)
    return bool(bits.max() < infinity) and bool(bits.view(unsigned).max() < (sign | infinity))
