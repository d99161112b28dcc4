"""The GGUF container, read from an untrusted file: metadata, tensor table, rows on request.

A file is: magic, version, counts, metadata (key, type, value), tensor table (name, dimensions with the
fastest first, type, offset), padding, data. Every length is checked against what is left of the file before
anything is allocated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ffn_fusion.errors import CheckpointError, MissingExtraError

MAGIC = b"GGUF"
AGAIN = "convert the model to GGUF again, or start from its safetensors"
_HEADER_LIMIT = 128 << 20  # a vocabulary of 256k tokens with its merges takes about 20 MB
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 48

BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""GGML type -> name, values per block, bytes per block. A row is a whole number of blocks."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of GGML type ``kind``; ``shape`` is row-major as in numpy (the file has it reversed)."""

    name: str
    kind: int
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def kind_name(self) -> str:
        return BLOCKS[self.kind][0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, i.e. of the last dimension (of one value, if there is only one dimension)."""
        _, values, size = BLOCKS[self.kind]
        return size if len(self.shape) == 1 else self.shape[-1] // values * size

    @property
    def nbytes(self) -> int:
        _, values, size = BLOCKS[self.kind]
        return math.prod(self.shape) // values * size

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Raw bytes of rows ``start..stop-1``, [rows, row_bytes].

        Raises:
            CheckpointError: the file became shorter than its header says.
        """
        buffer = bytearray((stop - start) * self.row_bytes)
        with self.file.open("rb") as file:
            file.seek(self.offset + start * self.row_bytes)
            if file.readinto(buffer) != len(buffer):
                raise CheckpointError(f"{self.file}: ends inside tensor {self.name}", "get the file again")
        return np.frombuffer(buffer, np.uint8).reshape(stop - start, self.row_bytes)


@dataclass(frozen=True)
class GgufFile:
    """Header of a GGUF file. Metadata values are int, float, bool, str, list[str] or a numpy array."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def setting(self, key: str, default: Any = None) -> Any:
        """What the metadata says under a key of the architecture's own."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number. Raises: CheckpointError: it's missing without a default, or something else."""
        value = self.setting(key, default)
        if not _is_whole(value) or value == 0:
            raise self._wrong(key, value, "a positive whole number")
        return int(value)

    def wholes(self, key: str, count: int, default: list[int] | None = None) -> list[int]:
        """A whole number for each of ``count`` blocks: an array, or one number for all. Raises: CheckpointError."""
        value = self.setting(key, default)
        values = value.tolist() if isinstance(value, np.ndarray) else value
        values = values if isinstance(values, list) else [values] * count
        if len(values) != count or not all(_is_whole(value) for value in values):
            raise self._wrong(key, value, f"{count} whole numbers")
        return values

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, as the decimal that was meant: GGUF keeps 1e-05 as the float32 9.999999747378752e-06.

        Raises:
            CheckpointError: it's missing without a default, or something else.
        """
        value = self.setting(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(key, value, "a positive number")
        return float(f"{value:.7g}")

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        found = "missing" if value is None else repr(value)
        return CheckpointError(f"{self.path}: {self.architecture}.{key} is {found}, not {wanted}", AGAIN)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def gguf_package(what: str) -> Any:
    """The gguf package. ``what`` needs it.

    Raises:
        MissingExtraError: it isn't installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the gguf package, which isn't installed", "pip install 'ffn-fusion[gguf]'"
        ) from error
    return gguf


def is_gguf(path: Path) -> bool:
    """Whether this file says that it is GGUF."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: not GGUF, cut short, contradicting itself, or of a kind that isn't known.
    """
    damaged = "get the file again; this one is damaged or was not written as GGUF"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            cursor = _Cursor(file, size)
            tensor_count, value_count = _preamble(path, cursor)
            metadata = dict(cursor.entry() for _ in range(value_count))
            if len(metadata) != value_count:
                raise ValueError("a key stands twice")
            tensors = [_tensor(path, cursor) for _ in range(tensor_count)]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "check that the file exists and can be read") from error
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a whole GGUF file ({error})", damaged) from error
    if metadata.get("split.count", 0) not in (0, 1):
        raise CheckpointError(f"{path}: one part of a split GGUF", "merge the parts first: llama-gguf-split --merge")
    return GgufFile(path, metadata, _place(path, tensors, _aligned(path, metadata, cursor.at), size, damaged))


def _preamble(path: Path, cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(4) != MAGIC:
        raise ValueError("no GGUF at its start")
    version = cursor.number("<u4")
    if version not in (2, 3):
        swapped = " (a big-endian file)" if version & 0xFFFF == 0 else ""
        raise CheckpointError(f"{path}: GGUF version {version}{swapped}; known are 2 and 3", "convert the model again")
    return cursor.count(24), cursor.count(12)  # bytes that one entry takes at the least


def _aligned(path: Path, metadata: Mapping[str, Any], offset: int) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {alignment!r}", "get the file again")
    return -(-offset // alignment) * alignment


def _tensor(path: Path, cursor: _Cursor) -> GgufTensor:
    """One entry of the tensor table; the offset still counts from the start of the data."""
    name = cursor.name()
    dimensions = cursor.number("<u4")
    if not 0 < dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.number("<u8") for _ in range(dimensions)]))
    kind, offset = cursor.number("<u4"), cursor.number("<u8")
    if kind not in BLOCKS:
        raise CheckpointError(
            f"{path}: tensor {name} has GGML type {kind}",
            f"known are {', '.join(entry[0] for entry in BLOCKS.values())}",
        )
    if not 0 < math.prod(shape) < _MAX_ELEMENTS or shape[-1] % BLOCKS[kind][1]:
        raise ValueError(f"tensor {name!r} of type {BLOCKS[kind][0]} is {list(shape)}")
    return GgufTensor(name, kind, shape, path, offset)


def _place(path: Path, table: list[GgufTensor], start: int, size: int, damaged: str) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for entry in table:
        tensor = GgufTensor(entry.name, entry.kind, entry.shape, path, start + entry.offset)
        if entry.name in tensors:
            raise CheckpointError(f"{path}: tensor {entry.name} stands twice", damaged)
        if tensor.offset + tensor.nbytes > size:
            raise CheckpointError(f"{path}: ends before the end of tensor {entry.name}", damaged)
        tensors[entry.name] = tensor
    return tensors


class _Cursor:
    """Reads forward, never past the end: a length that the file can't hold is a ValueError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._end = min(size, _HEADER_LIMIT)
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > self._end - self.at:
            raise ValueError(f"its header ends early or is longer than {_HEADER_LIMIT >> 20} MiB")
        raw = self._file.read(count)
        if len(raw) != count:
            raise ValueError("it became shorter while being read")
        self.at += count
        return raw

    def number(self, dtype: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def count(self, smallest: int) -> int:
        """A number of things to come, each of which takes ``smallest`` bytes or more."""
        count = int.from_bytes(self.take(8), "little")
        if count * smallest > self._end - self.at:
            raise ValueError(f"it speaks of {count:,} entries, more than it can hold")
        return count

    def name(self) -> str:
        """A string that can stand in an error line."""
        name = self.string()
        if not name.isprintable():
            raise ValueError(f"the name {name[:40]!r} isn't printable")
        return name

    def string(self) -> str:
        return self.take(int.from_bytes(self.take(8), "little")).decode()

    def entry(self) -> tuple[str, Any]:
        """One key of the metadata with its value."""
        key, kind = self.name(), self.number("<u4")
        if kind == _STRING:
            return key, self.string()
        if kind in _SCALARS:
            return key, self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"{key!r} has the unknown type {kind}")
        item = self.number("<u4")
        if item == _STRING:
            return key, [self.string() for _ in range(self.count(8))]
        if item not in _SCALARS:
            raise ValueError(f"{key!r} is an array of the unknown type {item}")
        dtype = np.dtype(_SCALARS[item])
        count = self.count(dtype.itemsize)
        return key, np.frombuffer(self.take(count * dtype.itemsize), dtype)
