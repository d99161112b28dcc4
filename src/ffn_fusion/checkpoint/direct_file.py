"""A file written once from front to back, past the page cache where the file system allows it (Linux O_DIRECT).

Gigabytes that nobody reads again needn't push everything else out of memory, and they reach the disk several times as
fast. Elsewhere it's an ordinary buffered file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


class DirectFile:
    """Write with :meth:`write`, end with :meth:`finish`, always :meth:`close`.

    Only whole pages from page-aligned memory (an ``mmap``) go past the cache, until something else is written: then
    the rest of the file takes the ordinary way.
    """

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

    def write(self, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        while rest:
            try:
                written = os.write(self._handle, rest)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                written = 0  # not what O_DIRECT asks for: not whole pages, or not from the start of one
            if written < len(rest):
                self._ordinary()  # the next write begins inside a page
            rest = rest[written:]

    def finish(self) -> None:
        """Wait until all of it is on the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)

    def _ordinary(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0
