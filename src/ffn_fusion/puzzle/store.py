"""A library on disk: one JSON file for each entry, and its weights, stored once under the hash of their content.

    library.json              what it was made of: parent, text, settings
    scores*.csv, costs.csv    what each entry does alone in the parent, and what it takes (docs/search.md)
    map.svg                   a drawing of both
    entries/NAME.json         an entry: what it changes, and what was measured
    weights/SHA256.safetensors    tensors by "number of the block among the entry's own" + "." + the family's key

Entries without weights are what the blueprint alone makes of the parent's. Nothing here is executed or followed out of
the folder: names of weights are hashes, and tensors are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ffn_fusion.blueprint import Block, Blueprint, Parent
from ffn_fusion.checkpoint.notes import Notes, write_atomic
from ffn_fusion.checkpoint.safetensors_file import TensorInfo, read_header
from ffn_fusion.errors import BlueprintError, DataError, OutputError
from ffn_fusion.families import ModelSpec, names_of
from ffn_fusion.puzzle.space import Changed, Entry
from ffn_fusion.settings import Frozen
from ffn_fusion.surgery.repairs import Repairs

HEADER, ENTRIES, WEIGHTS, WORK = "library.json", "entries", "weights", ".work"
SCORES = {"kl": "scores.csv", "loss": "scores-loss.csv", "cosine": "scores-cosine.csv"}
"""The tables of scores in a library's folder, by metric."""
COSTS, MAP = "costs.csv", "map.svg"
_SHA256 = "^[0-9a-f]{64}$"


class StoredEntry(Frozen):
    """An entry as it is kept.

    Attributes:
        initial, solved, trained: error on held-out windows, mean over tokens of |o_parent - o_child|^2 / |o_parent|^2,
            with o the state after the entry's last block: as surgery makes it, after the closed-form solve, and after
            the training. None: not solved, or not trained.
        removed: the same error if the sub-blocks do nothing, to judge the others by.
        steps: of the training.
        seconds: that all of it took.
        weights: SHA-256 of the file of weights; None: those that surgery makes.
    """

    first: int = Field(ge=0)
    last: int = Field(ge=0)
    part: Changed
    choice: str
    blocks: tuple[Block, ...] = Field(min_length=1)
    removed: float
    initial: float
    solved: float | None = None
    trained: float | None = None
    steps: int = 0
    seconds: float = 0.0
    weights: str | None = Field(None, pattern=_SHA256)

    @property
    def entry(self) -> Entry:
        """What it changes."""
        return Entry(self.first, self.last, self.part, self.choice, self.blocks)

    @property
    def error(self) -> float:
        """The error that is left."""
        return next(error for error in (self.trained, self.solved, self.initial) if error is not None)


@dataclass(frozen=True)
class Library:
    """A library of cheaper sub-blocks of one model."""

    folder: Path
    header: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Library:
        """Open a library.

        Raises:
            DataError: there is none, or it can't be read.
        """
        try:
            header = json.loads((folder / HEADER).read_bytes())
            assert isinstance(header, dict)
            Parent.model_validate(header["parent"])
        except OSError as error:
            raise DataError(
                f"{folder}: no library there ({error.strerror})", "name a folder that ffn-fusion library made"
            ) from error
        except (ValueError, KeyError, AssertionError) as error:
            raise DataError(f"{folder / HEADER}: can't be read", "make the library again") from error
        return cls(folder, header)

    @classmethod
    def claim(cls, folder: Path, key: str, header: Mapping[str, Any]) -> Library:
        """Make a folder the library of this work, or go on with it.

        Args:
            key: a hash of everything that entries depend on beside their own choice.

        Raises:
            OutputError: the folder holds something else, or a library of another model, text or method.
        """
        notes = Notes(folder, key, HEADER)
        if folder.exists() and any(folder.iterdir()) and not notes.found:
            what = "a library of another model, text or method" if (folder / HEADER).is_file() else "something else"
            raise OutputError(f"{folder}: holds {what}", "choose another folder, or remove it first")
        folder.mkdir(parents=True, exist_ok=True)
        notes.write(header)
        for part in (ENTRIES, WEIGHTS):
            (folder / part).mkdir(exist_ok=True)
        return cls(folder, header)

    @property
    def parent(self) -> Parent:
        """The model that it is of."""
        return Parent.model_validate(self.header["parent"])

    @cached_property
    def entries(self) -> tuple[StoredEntry, ...]:
        """All entries, in the order of their files.

        Raises:
            DataError: one can't be read.
        """
        return tuple(self._read(path) for path in sorted((self.folder / ENTRIES).glob("*.json")))

    def find(self, entry: Entry) -> StoredEntry | None:
        """Return what is kept of an entry, if it is finished."""
        path = self._path(entry)
        found = self._read(path) if path.is_file() else None
        return found if found and found.blocks == entry.blocks and self._whole(found) else None

    def add(self, stored: StoredEntry, weights: Mapping[str, Tensor]) -> StoredEntry:
        """Keep an entry with its weights, which are written first; returns it with their hash.

        Raises:
            OutputError: the disk is full.
        """
        try:
            if weights:
                stored = stored.model_copy(update={"weights": self._save(weights)})
            write_atomic(self._path(stored.entry), (stored.model_dump_json() + "\n").encode())
        except (OSError, SafetensorError) as error:
            hint = "free some space and run the same command again: it resumes"
            raise OutputError(f"{self.folder}: can't be written ({error})", hint) from error
        return stored

    def tensors(self, stored: StoredEntry) -> Mapping[str, TensorInfo]:
        """Return an entry's weights by "number of the block" + "." + the family's key.

        Raises:
            DataError: they aren't there, or damaged.
        """
        if stored.weights is None:
            return {}
        path = self.folder / WEIGHTS / f"{stored.weights}.safetensors"
        if not path.is_file():
            raise DataError(
                f"{path}: missing, the weights of {stored.entry.name}", "make the library again: it resumes"
            )
        return read_header(path)[0]

    def used(self, blueprint: Blueprint) -> Iterator[tuple[int, StoredEntry]]:
        """Yield the entries that a blueprint is made of, each with the number of its first block in the child.

        An entry for all of a block, or of a run, comes before entries for a part of it.

        Raises:
            BlueprintError: the blueprint is of another model.
        """
        if blueprint.parent.blocks != self.parent.blocks:
            raise BlueprintError(
                f"the library is of {self.parent.name}, and the blueprint of {blueprint.parent.name}",
                "choose from the library of the same model",
            )
        by_first: dict[int, list[StoredEntry]] = {}
        for stored in self.entries:
            by_first.setdefault(stored.first, []).append(stored)
        kept = blueprint.kept_blocks
        at = 0
        while at < len(kept):
            here = by_first.get(kept[at].parent_blocks[0], ())
            wholes = [
                s for s in here if s.part == "block" and (b := s.entry.kept_blocks) and b == kept[at : at + len(b)]
            ]
            if wholes:
                yield at, wholes[0]
                at += len(wholes[0].entry.kept_blocks)
                continue
            for stored in here:
                if stored.part != "block" and stored.blocks[0].part(stored.part) == kept[at].part(stored.part):
                    yield at, stored
            at += 1

    def _read(self, path: Path) -> StoredEntry:
        try:
            return StoredEntry.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path}: can't be read as an entry of a library", "remove it, and make it again"
            ) from error

    def _path(self, entry: Entry) -> Path:
        words = "-".join(re.findall(r"[a-z0-9]+", entry.choice.lower()))
        digest = hashlib.sha256(json.dumps([entry.choice, *(b.model_dump_json() for b in entry.blocks)]).encode())
        name = f"{entry.first:04d}-{entry.last:04d}-{entry.part}-{words[:40]}-{digest.hexdigest()[:8]}"
        return self.folder / ENTRIES / f"{name}.json"

    def _whole(self, stored: StoredEntry) -> bool:
        return stored.weights is None or (self.folder / WEIGHTS / f"{stored.weights}.safetensors").is_file()

    def _save(self, weights: Mapping[str, Tensor]) -> str:
        folder = self.folder / WEIGHTS
        part = folder / ".part"
        save_file({name: weight.contiguous() for name, weight in weights.items()}, part)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())  # before the entry that counts on it
        part.replace(folder / f"{digest}.safetensors")
        return digest


class LibraryWeights(Repairs):
    """The weights of some entries by the names of a child: to give to ``Child`` or ``build``.

    Args:
        used: entries, each with the number of its first block in the child (``Library.used``).
        child: the child's sizes.

    Raises:
        DataError: weights that aren't there.
    """

    def __init__(self, library: Library, used: Iterable[tuple[int, StoredEntry]], child: ModelSpec) -> None:
        self.folder = library.folder
        self._infos, names, taken = {}, names_of(child), list(used)
        for at, stored in taken:
            for key, info in library.tensors(stored).items():
                number, _, tensor = key.partition(".")
                self._infos[names.of(at + int(number), tensor)] = info
        self.record = {
            "version": 1,
            "calibration": library.header["calibration"],
            "settings": {},
            "files": {name: info.file.name for name, info in self._infos.items()},
            "places": [],
            "library": [_said(stored) for _, stored in taken if stored.weights],
        }

    @cached_property
    def digest(self) -> str:
        """A hash over the weights themselves: their files are named by it."""
        rows = sorted((name, info.file.name, info.name) for name, info in self._infos.items())
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _said(stored: StoredEntry) -> dict[str, Any]:
    """What a child's record says of an entry that it has."""
    how = "trained" if stored.trained is not None else "solved"
    return {"first": stored.first, "last": stored.last, "part": stored.part, "choice": stored.choice, "how": how}
