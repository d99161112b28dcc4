"""The safetensors container, read from an untrusted file and written as a stream. No torch, no mmap.

A file is: u64 length of the header, the JSON header {name: {dtype, shape, data_offsets}}, then the bytes of the
tensors without gaps. Direct reads and not mmap, so that memory stays what we allocate however large the file is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from ffn_fusion.errors import CheckpointError

ITEM_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_HEADER_LIMIT = 100_000_000  # as the safetensors library
CHUNK_BYTES = 1 << 20  # stays in the processor's cache from the read to the check, the hash and the write


class Sized:
    """What follows from a tensor's dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, i.e. of one step along the first dimension."""
        return math.prod(self.shape[1:]) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class TensorInfo(Sized):
    """Where a tensor's bytes lie: ``nbytes`` from ``offset`` (from the file's start), row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], bytes]:
    """The tensors of a safetensors file, and the raw header.

    Raises:
        CheckpointError: the file isn't safetensors, is cut short, or its header contradicts itself.
    """
    damaged = "get the file again; this one is damaged or was not written as safetensors"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or not 0 < length <= min(_HEADER_LIMIT, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file", damaged)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "check that the file exists and can be read") from error
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
        assert isinstance(header, dict)
        header.pop("__metadata__", None)
        tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, AssertionError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is malformed", damaged) from error
    end = 8 + length
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset != end:
            raise CheckpointError(f"{path}: tensor {info.name} overlaps another or leaves a gap", damaged)
        end += info.nbytes
    if end != size:
        raise CheckpointError(f"{path}: {size:,} bytes, but its header speaks of {end:,}", damaged)
    return tensors, raw


def _entry(path: Path, name: str, entry: Mapping[str, Any], base: int) -> TensorInfo:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in ITEM_SIZES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype}", f"known are {', '.join(ITEM_SIZES)}")
    numbers = (*shape, start, stop)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(name)
    info = TensorInfo(name, dtype, shape, path, base + start)
    if info.nbytes != stop - start:
        raise ValueError(name)
    return info


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def read_bytes(info: TensorInfo, start: int, buffer: memoryview) -> None:
    """Fill ``buffer`` with the tensor's bytes from ``start`` on.

    Raises:
        CheckpointError: the file became shorter than its header says.
    """
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.offset + start)
        read_into(file, info, buffer)


def chunks(info: TensorInfo) -> Iterator[memoryview]:
    """The tensor's bytes in pieces of at most ``CHUNK_BYTES``, each in a buffer of its own."""
    import numpy as np  # here, since reading headers must be quick

    with info.file.open("rb", buffering=0) as file:
        file.seek(info.offset)
        for start in range(0, info.nbytes, CHUNK_BYTES):
            buffer = memoryview(np.empty(min(CHUNK_BYTES, info.nbytes - start), np.uint8))  # type: ignore[arg-type]
            read_into(file, info, buffer)
            yield buffer


def read_into(file: RawIOBase, info: TensorInfo, buffer: memoryview) -> None:
    """Fill ``buffer`` with what comes next in ``file``, which holds ``info``.

    Raises:
        CheckpointError: the file ends before.
    """
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise CheckpointError(f"{info.file}: ends inside tensor {info.name}", "get the file again")
        done += count


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Length and header for tensors (name, dtype, shape) stored in this order, padded to 8 bytes as by the library."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * ITEM_SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def fsync_folder(folder: Path) -> None:
    """Make renames and new files inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
