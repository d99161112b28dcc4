"""The journal of a sweep: what it has found so far, on disk, so that a killed process resumes after the last block.

A folder holds one file of tables for every finished unit (a block, a window at the head), and the notes
``journal.json``. Without a folder, everything stays in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.checkpoint.notes import Notes

Table = npt.NDArray[Any]


class Journal(Notes):
    """Tables by name, and notes of how far the work has come.

    Args:
        folder: where they are kept; None keeps them in memory.
        key: a hash of everything that the results depend on; a folder with another key is emptied.
    """

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        super().__init__(folder, key, "journal.json")
        self._tables: dict[str, dict[str, Table]] = {}
        self.claim()

    def save(self, name: str, tables: Mapping[str, Table]) -> None:
        """Save the tables of a finished unit."""
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
        """Return the tables of a finished unit, or None if it isn't finished or its file is damaged."""
        if self.folder is None:
            return self._tables.get(name)
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, EOFError):
            return None
