"""Checkpoints to resume a training from: ``checkpoint-STEP`` folders, of which only complete ones count.

The states of the optimiser, the schedule and the random generators are torch's own (pickled) files, written by
transformers' Trainer and read with ``weights_only``. They exist only in the work folder, never in a child.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffn_fusion.checkpoint.notes import Notes, write_atomic

_WHOLE = "whole.json"
"""Written last: names and sizes of the other files."""
_OPTIMISER = re.compile(r"(optimizer|scheduler|scaler|rng_state).*")
"""Files of a checkpoint that are needed only to resume the training."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    folder: Path
    step: int


def prepare(work: Path, key: str) -> None:
    """Create the work folder, or remove what belongs to another training or was left incomplete."""
    Notes(work, key).claim()
    remove_torn(work)


def folder_of(work: Path, step: int) -> Path:
    return work / f"checkpoint-{step}"


def mark_whole(folder: Path) -> None:
    """Sync the files of a checkpoint and mark it as complete."""
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_atomic(folder / _WHOLE, json.dumps(sizes).encode())


def newest(work: Path) -> Saved | None:
    """Return the newest complete checkpoint, or None."""
    whole = [saved for saved in _all(work) if _is_whole(saved.folder)]
    return max(whole, key=lambda saved: saved.step, default=None)


def finish(work: Path, key: str, record: Mapping[str, Any]) -> None:
    """Record that the training with this key is finished, and what it did."""
    Notes(work, key).write({"record": record})


def finished(work: Path, key: str) -> dict[str, Any] | None:
    """Return the record of the finished training with this key, or None."""
    return Notes(work, key).values.get("record")


def keep_weights(work: Path) -> None:
    """Keep only the final weights of a finished training, for the next training to start from."""
    last = newest(work)
    assert last is not None
    for saved in _all(work):
        if saved != last:
            shutil.rmtree(saved.folder)
    sizes = json.loads((last.folder / _WHOLE).read_bytes())
    gone = [name for name in sizes if _OPTIMISER.fullmatch(name)]
    write_atomic(last.folder / _WHOLE, json.dumps({n: size for n, size in sizes.items() if n not in gone}).encode())
    for name in gone:
        (last.folder / name).unlink(missing_ok=True)


def keep_record(work: Path) -> None:
    """Keep only the record of a training once the next one is finished."""
    for saved in _all(work):
        shutil.rmtree(saved.folder)


def remove_torn(work: Path) -> None:
    """Remove what a killed process left incomplete."""
    for saved in _all(work):
        if not _is_whole(saved.folder):
            shutil.rmtree(saved.folder)


def _all(work: Path) -> list[Saved]:
    folders = work.glob("checkpoint-*") if work.is_dir() else ()
    found = [(folder, re.fullmatch(r"checkpoint-(\d+)", folder.name)) for folder in folders]
    return [Saved(folder, int(match[1])) for folder, match in found if match]


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _WHOLE).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False
