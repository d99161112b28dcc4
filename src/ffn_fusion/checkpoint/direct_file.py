"""A file written once from front to back, past the page cache where the file system allows it (Linux O_DIRECT).

Gigabytes that nobody reads again needn't push everything else out of memory, and they reach the disk several times as
fast. Elsewhere it's an ordinary buffered file.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

_BLOCK = 8 << 20  # a multiple of every disk's block size; its buffer begins on a page, as O_DIRECT asks


class DirectFile:
    """Write with :meth:`write`, end with :meth:`finish`, always :meth:`close`."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._direct = getattr(os, "O_DIRECT", 0)
        try:
            self._handle = os.open(path, flags | self._direct, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = 0  # a file system without it, such as tmpfs
            self._handle = os.open(path, flags, 0o644)
        self._block = memoryview(mmap.mmap(-1, _BLOCK))
        self._filled = 0

    def write(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece).cast("B")
        while view:
            count = min(len(view), _BLOCK - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == _BLOCK:
                self._flush()

    def finish(self) -> None:
        """Write what's left and wait until all of it is on the disk."""
        self._ordinary()  # the end of a file isn't a whole block
        self._flush()
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)

    def _flush(self) -> None:
        rest = self._block[: self._filled]
        while rest:
            written = os.write(self._handle, rest)
            if 0 < written < len(rest):
                self._ordinary()  # the next write would begin inside a block
            rest = rest[written:]
        self._filled = 0

    def _ordinary(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0
