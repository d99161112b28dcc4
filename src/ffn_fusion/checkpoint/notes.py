"""Notes of how far work has come, so that the same work resumes where it was interrupted.

Notes belong to a key: a hash of everything that the results of the work depend on. They are replaced in one step, after
the files that they count on are synced. A file that is missing, torn or of another key holds no notes, so the work
starts over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


class Notes:
    """Values (JSON) that one piece of work notes about itself.

    Args:
        folder: where they are kept; None keeps them in memory.
        key: a hash of everything that the results of the work depend on.
        name: the file in ``folder``.
    """

    def __init__(self, folder: Path | None, key: str, name: str = "notes.json") -> None:
        self.folder, self.key, self._name = folder, key, name
        self._values = self._read()

    @property
    def found(self) -> bool:
        """Whether there are notes of this key."""
        return self._values is not None

    @property
    def values(self) -> dict[str, Any]:
        """The values that were written last; empty if there are none."""
        return dict(self._values or {})

    def write(self, values: Mapping[str, Any]) -> None:
        """Replace all values."""
        self._values = dict(values)
        if self.folder:
            content = json.dumps({"key": self.key, **values}, indent=1) + "\n"
            write_atomic(self.folder / self._name, content.encode())

    def claim(self, keep: Collection[str] = ()) -> None:
        """Make the folder that of this work: everything in it but ``keep`` is removed unless its notes were found."""
        if self.found or not self.folder:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / self._name).unlink(missing_ok=True)  # before the files that it counts on
        for path in self.folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.write({})

    def _read(self) -> dict[str, Any] | None:
        if self.folder is None:
            return None
        try:
            found = json.loads((self.folder / self._name).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.pop("key", None) == self.key else None


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step: readers see the old content or the new, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
