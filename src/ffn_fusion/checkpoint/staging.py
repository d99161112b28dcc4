"""Output appears whole or not at all: staged beside the target, synced, described by a manifest, then renamed.

``OUT.partial`` holds the work until it is whole. A killed build leaves it behind, and the same command resumes from
the files in it that are known to be finished; a different command discards it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ffn_fusion.checkpoint.notes import Notes
from ffn_fusion.checkpoint.safetensors_file import fsync_folder
from ffn_fusion.errors import CheckpointError, OutputError

MAX_SHARD_BYTES = 5_000_000_000
MANIFEST = "manifest.json"
MODEL_CARD = "README.md"
DISTILLATION = "distillation.json"
"""The record of a child's distillation; lies in the child."""
_JOURNAL = ".journal.json"
_LOCK = ".lock"


def check_target(target: Path, source: Path | None, *, force: bool = False) -> None:
    """Refuse a target that exists, or that lies inside the input (or the other way round).

    Raises:
        OutputError: with what to do.
    """
    real = target.resolve()
    if source is not None:
        root = source.resolve()
        if real == root or real.is_relative_to(root) or root.is_relative_to(real):
            raise OutputError(f"{target}: the output and the input {source} lie in one another", "choose another place")
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already", "choose another output, or remove it first")


def bytes_in(folder: Path) -> int:
    """Of all files in it and below; 0 where there is no such folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(target: Path, needed: int) -> None:
    """Foresee a full disk.

    Raises:
        OutputError: fewer than ``needed`` bytes are free where ``target`` will stand, what an interrupted build left
            there not counted: it is either resumed or discarded.
    """
    place = next(parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free + bytes_in(_partial(target))
    if free < needed:
        raise OutputError(
            f"{target}: needs {needed / 1e9:,.2f} GB, but {free / 1e9:,.2f} GB are free on its disk",
            "free some space or choose another disk",
        )


class Staging:
    """A folder being written. Files are finished one by one; :meth:`commit` makes the whole appear as ``target``."""

    def __init__(self, target: Path, folder: Path, key: str) -> None:
        self.target = target
        self.folder = folder
        self._notes = Notes(folder, key, _JOURNAL)
        self._notes.claim(keep={_LOCK})
        self._done: dict[str, dict[str, Any]] = self._notes.values.get("files", {})

    def finished(self, name: str) -> bool:
        """Whether an earlier, interrupted build with the same key finished this file (checked by its size)."""
        entry = self._done.get(name)
        path = self.folder / name
        return entry is not None and path.is_file() and path.stat().st_size == entry["bytes"]

    def finish(self, name: str, sha256: str) -> None:
        """Note that ``name`` is written and synced."""
        self._done[name] = {"bytes": (self.folder / name).stat().st_size, "sha256": sha256}
        self._notes.write({"files": self._done})

    def write(self, name: str, content: bytes) -> None:
        """Write and finish a small file."""
        with (self.folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.finish(name, hashlib.sha256(content).hexdigest())

    def commit(self, about: dict[str, Any]) -> None:
        """Write the manifest, drop the bookkeeping, sync, and rename the folder to its target."""
        files = {name: self._done[name] for name in sorted(self._done) if name != MODEL_CARD}
        self.write(MANIFEST, (json.dumps({**about, "files": files}, indent=1) + "\n").encode())
        for path in self.folder.iterdir():
            if path.name not in self._done and path.name != _LOCK:
                path.unlink()
        fsync_folder(self.folder)
        self.folder.rename(self.target)  # with its lock, so that no one else can step into it before
        (self.target / _LOCK).unlink()
        fsync_folder(self.target.parent)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


@contextmanager
def staged(target: Path, key: str) -> Iterator[Staging]:
    """Stage ``target``; ``key`` says what is being built, so that only the same build resumes.

    An error leaves nothing behind. A kill leaves ``target.partial``, from which the same build goes on.

    Raises:
        OutputError: another process is building the same target; the folder can't be written.
    """
    folder = _partial(target)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise OutputError(
            f"{folder}: is in the way and isn't an interrupted build", "move it, or choose another output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}", "choose a place that can be written") from error
    with exclusive(folder / _LOCK, f"{target}: another process is building it"):
        try:
            yield Staging(target, folder, key)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(f"{target}: {error.strerror or error}", "nothing was left behind; try again") from error
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def exclusive(lock: Path, busy: str) -> Iterator[None]:
    """Hold ``lock`` while inside; it's released when the process ends, however it ends.

    Raises:
        OutputError: another process holds it.
    """
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(busy, "wait for it, or choose another output") from error
        if not lock.exists() or not os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
            raise OutputError(busy, "it ended just now; try again")  # the lock that we hold was removed meanwhile
        yield


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a child checkpoint; None for a checkpoint that isn't ours."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON", "build the child again") from error
    return value if isinstance(value, dict) and "files" in value else None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatches(folder: Path) -> list[str]:
    """Files of a child whose bytes aren't what its manifest says (missing ones included)."""
    manifest = read_manifest(folder) or {"files": {}}
    return [
        name
        for name, entry in manifest["files"].items()
        if not (folder / name).is_file() or file_sha256(folder / name) != entry["sha256"]
    ]
