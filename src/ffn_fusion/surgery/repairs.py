"""Repaired weights beside a blueprint: tensors of the child that were solved anew, read as they are needed.

A folder: ``repairs.json`` (what belongs to what, and what was measured) and a safetensors file for every place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.checkpoint.reader import torch_dtype
from ffn_fusion.checkpoint.safetensors_file import TensorInfo, read_bytes, read_header
from ffn_fusion.errors import DataError, OutputError
from ffn_fusion.families.family import SubBlockTensor
from ffn_fusion.surgery.fuse_ffn import Concatenated, fuse_columns, fuse_rows
from ffn_fusion.surgery.joins import Join, Rows

RECORD = "repairs.json"


class Repairs(Mapping[str, TensorInfo]):
    """Repaired tensors by the child's names, unpadded. ``record`` is what ``repairs.json`` says.

    Raises:
        DataError: nothing there, or not what the record says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        again = "repair the child again"
        try:
            self.record: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
            files = {str(name): folder / Path(str(file)).name for name, file in self.record["files"].items()}
        except OSError as error:
            raise DataError(f"{folder}: no repairs there ({error.strerror})", again) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / RECORD}: can't be read", again) from error
        self._infos: dict[str, TensorInfo] = {}
        for name, file in files.items():
            tensors, _ = read_header(file)
            if name not in tensors:
                raise DataError(f"{file}: doesn't hold {name}", again)
            self._infos[name] = tensors[name]

    def over(self, base: Repairs | None) -> Repairs:
        """The same weights, and those of ``base`` that they don't replace."""
        if base is not None:
            self._infos = {**base.tensors, **self._infos}
            self.record = {**self.record, "library": base.record["library"]}
        return self

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a repaired tensor, in its own dtype."""
        info = self._infos[name]
        raw = torch.empty((stop - start) * info.row_bytes, dtype=torch.uint8)
        read_bytes(info, start * info.row_bytes, raw.numpy().data)
        return raw.view(torch_dtype(info.dtype)).view(stop - start, *info.shape[1:])

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, as a parent has them."""
        return self._infos

    def read(self, name: str) -> Tensor:
        """The whole of a repaired tensor."""
        return self.rows(name, 0, self._infos[name].shape[0])

    @cached_property
    def digest(self) -> str:
        """A hash over the weights themselves."""
        digest = hashlib.sha256()
        for name, info in sorted(self._infos.items()):
            digest.update(name.encode())
            with info.file.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


@dataclass(frozen=True, eq=False)
class Repaired(Join):
    """A repaired tensor in place of what the blueprint makes of ``like``, with ``padding`` zero channels.

    Output matrices are solved as [D, F]; ``axis`` 0 says that the child stores its own as [F, D]. Biases are vectors
    [D], and matrices that read the state are kept as the child stores them.
    """

    repairs: Repairs
    name: str
    padding: int
    like: tuple[str, ...]
    tensor: SubBlockTensor

    @property
    def sources(self) -> tuple[str, ...]:
        return self.like

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        stored, axis = self.repairs[self.name].shape, self.tensor.axis
        if self.tensor.role == "into":
            whole = Concatenated((self.name,), axis, self.padding, stacked=self.tensor.stacked)
            return whole.rows(self.repairs, shape, dtype, start, stop)
        if axis == 0 and len(stored) == 2:
            channels = self.repairs.rows(self.name, 0, stored[0]).to(dtype)[:, start:stop].T
            return fuse_rows([channels], stop - start - len(channels))
        repaired = self.repairs.rows(self.name, start, stop).to(dtype)
        return fuse_columns([repaired], self.padding) if self.padding else repaired


def is_repaired(child: Path) -> bool:
    """Whether a child on disk was repaired: its record lies with it."""
    return (child / RECORD).is_file()


def read_repairs(child: Path) -> dict[str, Any] | None:
    """Return the record of a child's repair, whose weights the child itself holds; None if it wasn't repaired."""
    record: dict[str, Any] | None = json.loads((child / RECORD).read_bytes()) if is_repaired(child) else None
    return record


def save_repair(folder: Path, name: str, weight: Tensor) -> str:
    """Write one tensor; returns its file's name.

    Raises:
        OutputError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{name}.safetensors"
    part = folder / f"{file}.part"
    try:
        save_file({name: weight.contiguous()}, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())  # before any note that counts on it
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"{folder}: can't be written ({error})", "free some space and run the same command again: it resumes"
        ) from error
    part.replace(folder / file)
    return file


def save_record(folder: Path, record: Mapping[str, Any]) -> None:
    """What the files are; written last, so that a folder with a record is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
