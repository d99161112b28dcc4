"""What a sweep has found so far, kept on disk, so that a process that was killed goes on from the last finished block.

A folder holds one file of tables for every finished unit (a block, a window at the head) and ``journal.json``, which
says what all of it belongs to and how far it has come. Without a folder, the tables stay in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.checkpoint.staging import write_atomic

Table = npt.NDArray[Any]


class Journal:
    """Tables by name, and how far the work has come.

    Args:
        folder: where it's kept; None keeps it in memory.
        key: a hash over all that the results depend on; a folder with another key is emptied.
    """

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self.folder = folder
        self._tables: dict[str, dict[str, Table]] = {}
        self._head: dict[str, Any] = {"key": key}
        if folder is None:
            return
        before = self._read_head()
        if before.get("key") == key:
            self._head = before
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.note({})

    @property
    def position(self) -> dict[str, Any]:
        """What was noted last."""
        return {name: value for name, value in self._head.items() if name != "key"}

    def note(self, position: Mapping[str, Any]) -> None:
        """The work has come so far (JSON)."""
        self._head = {"key": self._head["key"], **position}
        if self.folder:
            write_atomic(self.folder / "journal.json", json.dumps(self._head).encode())

    def save(self, name: str, tables: Mapping[str, Table]) -> None:
        if self.folder is None:
            self._tables[name] = dict(tables)
            return
        part = self.folder / f"{name}.part"
        with part.open("wb") as file:
            np.savez(file, **dict(tables))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())  # before any note that counts on it
        part.replace(self.folder / f"{name}.npz")

    def load(self, name: str) -> dict[str, Table] | None:
        """The tables of a finished unit; None if it isn't, or its file is damaged."""
        if self.folder is None:
            return self._tables.get(name)
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, EOFError):
            return None

    def _read_head(self) -> dict[str, Any]:
        assert self.folder is not None
        try:
            head = json.loads((self.folder / "journal.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return head if isinstance(head, dict) else {}
