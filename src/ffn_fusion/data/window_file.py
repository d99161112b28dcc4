"""Token windows on disk, for texts larger than memory: tokenised once in a stream, and memory-mapped afterwards.

``NAME.bin`` holds the windows, 2 bytes per token (4 if the vocabulary has more than 65,536 tokens). ``NAME.json``
records the progress and the position in the text. Both are updated after every buffer, so an interrupted call loses at
most one buffer; as a buffer does not depend on earlier ones, a resumed file ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ffn_fusion.checkpoint.notes import Notes
from ffn_fusion.checkpoint.staging import check_space, exclusive
from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.source import Position, Source, source_of
from ffn_fusion.data.window_rows import InFile, TokenWindows
from ffn_fusion.data.windows import check_enough, wanted_windows, windows_of
from ffn_fusion.errors import FfnFusionError, OutputError
from ffn_fusion.processes import Progress, silent

_SHORT_IDS = 1 << 16
_WRITTEN = 1024  # windows at once


def write_windows(
    tokenizer: Any,
    path: Path | HubText,
    context: int,
    tokens: int,
    file: Path,
    *,
    seed: int = 0,
    label: str | None = None,
    vocabulary: int | None = None,
    progress: Progress = silent,
) -> TokenWindows:
    """Write the windows of :func:`make_windows` to ``file``.bin and ``file``.json, never holding all of them in memory.

    Complete files are reused. An interrupted call continues from its last buffer and produces the same bits; another
    text, tokenizer or number of tokens starts over.

    Args:
        vocabulary: number of tokens that the model knows; a text with others is refused.
        progress: counts tokens.

    Raises:
        CheckpointError, DataError, MissingExtraError: see :func:`make_windows`. OutputError: the disk is full, or
        another process writes.
    """
    writing = _Writing(tokenizer, source_of(path), context, wanted_windows(context, tokens), file, seed, vocabulary)
    return writing.written(label or writing.source.label, progress)


def read_origin(file: Path) -> dict[str, Any]:
    """Return where the windows of a complete file come from: ``source``, and for a hub data set ``commit``."""
    note = json.loads(file.with_suffix(".json").read_bytes())
    commit = note["position"].get("commit")
    return {"source": note["source"], **({"commit": commit} if commit else {})}


@dataclass(frozen=True)
class _Writing:
    """A window file that is being written, with at most ``wanted`` windows."""

    tokenizer: Any
    source: Source
    context: int
    wanted: int
    file: Path
    seed: int
    vocabulary: int | None

    @property
    def bin(self) -> Path:
        return self.file.with_suffix(".bin")

    @cached_property
    def notes(self) -> Notes:
        return Notes(self.file.parent, self.key, self.file.with_suffix(".json").name)

    @cached_property
    def dtype(self) -> str:
        """Little-endian, on every machine."""
        return "<u2" if max(self.tokenizer.get_vocab().values(), default=0) < _SHORT_IDS else "<i4"

    @cached_property
    def key(self) -> str:
        """Return a hash of everything the windows depend on."""
        words = [self.source.state(), self.context, self.wanted, self.seed, version("ffn-fusion")]
        words += [version("transformers"), _state(self.tokenizer)]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    def written(self, label: str, progress: Progress) -> TokenWindows:
        self._make_folder()
        with exclusive(self.file.with_suffix(".lock"), f"{self.file}: another process writes these windows"):
            done = self._progress()
            try:
                if not done["whole"]:
                    done = self._write(done, progress)
                check_enough(self.source, done["windows"], self.context)
            except FfnFusionError:
                left = self._progress()
                if not left["windows"] or left["whole"]:  # nothing to go on from
                    self.file.with_suffix(".json").unlink(missing_ok=True)
                    self.bin.unlink(missing_ok=True)
                raise
        return TokenWindows.of_file(label, InFile(self.bin, self.dtype, self.context, 0, done["windows"]))

    def _make_folder(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.file.parent}: {error.strerror}", "choose a place that can be written") from error

    def _progress(self) -> dict[str, Any]:
        """Return how far an earlier call has come; nowhere if it was for something else."""
        begun = {"whole": False, "windows": 0, "buffers": 0, "position": None}
        noted = begun | self.notes.values
        there = self.bin.stat().st_size if self.bin.is_file() else 0
        return noted if there >= noted["windows"] * self._window_bytes else begun

    @property
    def _window_bytes(self) -> int:
        return self.context * np.dtype(self.dtype).itemsize

    def _write(self, done: dict[str, Any], progress: Progress) -> dict[str, Any]:
        count, number, position = done["windows"], done["buffers"], done["position"]
        check_space(self.bin, (self.wanted - count) * self._window_bytes)
        with self._disk(), self.bin.open("r+b" if count else "wb") as out:
            out.truncate(count * self._window_bytes)
            out.seek(0, os.SEEK_END)
            buffered = windows_of(
                self.tokenizer, self.source, self.context, self.seed, number, position, self.vocabulary
            )
            progress("tokens", count * self.context, self.wanted * self.context)
            for found, position in buffered:
                for written in self._append(out, islice(found, self.wanted - count)):
                    count += written
                    progress("tokens", count * self.context, self.wanted * self.context)
                number += 1
                out.flush()
                os.fsync(out.fileno())
                if count == self.wanted:
                    break
                self._note(False, count, number, position)
            return self._note(True, count, number, position)

    def _append(self, out: BinaryIO, windows: Iterator[list[int]]) -> Iterator[int]:
        while rows := list(islice(windows, _WRITTEN)):
            ids = np.asarray(rows, np.int64)
            assert ids.min() >= 0
            assert ids.max() <= np.iinfo(self.dtype).max
            out.write(ids.astype(self.dtype).data)
            yield len(rows)

    def _note(self, whole: bool, windows: int, buffers: int, position: Position | None) -> dict[str, Any]:
        note = {
            "source": str(self.source),
            "whole": whole,
            "dtype": self.dtype,
            "context": self.context,
            "windows": windows,
            "buffers": buffers,
            "position": position,
        }
        self.notes.write(note)
        return note

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a text that can't be read is a DataError by now
            raise OutputError(
                f"{self.bin}: can't be written ({error.strerror or error})",
                "free some space and run the same command again to resume",
            ) from error


def _state(tokenizer: Any) -> str:
    """Return what determines how the tokenizer treats text."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    words = fast.to_str() if fast is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return f"{type(tokenizer).__name__} {words} {tokenizer.chat_template} {tokenizer.special_tokens_map}"
