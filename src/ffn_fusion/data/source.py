"""Text sources: local files or a data set on the hub, read in the same way and from any position on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ffn_fusion.data.conversation import Conversation
from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.pieces import cut, pieces_of
from ffn_fusion.data.text import Document, has_records, no_text, read_blocks, read_records, text_files

BUFFER = 1 << 26
"""Characters that are shuffled together, and held in memory for it."""

Position = dict[str, Any]
"""A place between two documents, in JSON."""


class Reader(Protocol):
    """Iterates over a source once."""

    def __iter__(self) -> Iterator[list[Document]]:
        """Yield pieces, document by document."""

    def position(self) -> Position:
        """The position after the last piece: a reader that starts there continues with the next one."""


class Source(Protocol):
    """A text that can be read in a fixed order."""

    @property
    def label(self) -> str:
        """A short name for tables."""

    def reader(self, size: int, position: Position | None = None) -> Reader:
        """Return a reader of pieces of at most ``size`` characters, starting at a position that such a reader gave."""

    def state(self) -> str:
        """Return a text that changes when the source does."""


@dataclass(frozen=True)
class LocalText:
    """A text file, or a folder of text files."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def label(self) -> str:
        return self.path.stem

    def reader(self, size: int, position: Position | None = None) -> Reader:
        return _LocalReader(text_files(self.path), size, **(position or {}))

    def state(self) -> str:
        """Return the names, sizes and modification times of the files."""
        path = self.path
        files = [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
        return "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


class _LocalReader:
    """Reads local files; ``taken`` counts the records of a file of records, and the pieces of any other file."""

    def __init__(self, files: list[Path], size: int, file: int = 0, taken: int = 0) -> None:
        self._files, self._size, self._file, self._taken = files, size, file, taken

    def __iter__(self) -> Iterator[list[Document]]:
        for number in range(self._file, len(self._files)):
            file, after = self._files[number], self._taken if number == self._file else 0
            self._file = number
            for taken, document in enumerate(self._after(file, after), after + 1):
                self._taken = taken
                if isinstance(document, Conversation) or document.strip():
                    yield pieces_of(document, self._size) if has_records(file) else [document]

    def _after(self, file: Path, after: int) -> Iterator[Document]:
        if has_records(file):
            return read_records(file, after)
        return islice(cut(read_blocks(file), self._size), after, None)

    def position(self) -> Position:
        return {"file": self._file, "taken": self._taken}


def source_of(where: Path | HubText) -> Source:
    return LocalText(where) if isinstance(where, Path) else where


def buffers(reader: Reader) -> Iterator[list[Document]]:
    """Yield lists of pieces, as many as fit into memory; in between, ``position`` is that after the last list."""
    held, characters = list[Document](), 0
    for pieces in reader:
        held += pieces
        characters += sum(map(_length, pieces))
        if characters >= BUFFER:
            yield held
            held, characters = [], 0
    if held:
        yield held


def check_source(where: Path | HubText) -> None:
    """Check that a source has text, by reading one buffer of a local source or one document of a hub source.

    Raises:
        DataError: there is no text, or it cannot be read.
    """
    reader = source_of(where).reader(BUFFER)
    if not next(buffers(reader) if isinstance(where, Path) else iter(reader), None):
        raise no_text(where)


def _length(piece: Document) -> int:
    return len(piece) if isinstance(piece, str) else sum(len(message.content) for message in piece.messages)
