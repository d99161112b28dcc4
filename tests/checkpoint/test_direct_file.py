from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.checkpoint import direct_file
from ffn_fusion.checkpoint.direct_file import DirectFile


def write(path: Path, pieces: Sequence[bytes | memoryview]) -> bytes:
    with closing(DirectFile(path)) as file:
        for piece in pieces:
            file.write(piece)
        file.finish()
    return path.read_bytes()


@given(st.lists(st.tuples(st.integers(0, 20_000), st.booleans()), max_size=8))
def test_what_is_written_is_there(tmp_path: Path, sizes: list[tuple[int, bool]]) -> None:
    """Whole pages and others, from the start of a page and from elsewhere, in any order."""
    pieces = []
    for i, (size, paged) in enumerate(sizes):
        size = size // mmap.PAGESIZE * mmap.PAGESIZE if paged else size
        pieces.append(memoryview(mmap.mmap(-1, size))[:] if paged and size else memoryview(bytearray(size)))
        pieces[-1][:] = bytes([i + 1]) * size
    assert write(tmp_path / "f", pieces) == b"".join(pieces)


def test_whole_pages_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until something else is written; what the disk refuses is written again in the ordinary way."""
    real, flags = os.write, []

    def watched(handle: int, data: memoryview) -> int:
        flags.append(bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT))
        return real(handle, data)

    monkeypatch.setattr(direct_file.os, "write", watched)
    page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    assert write(tmp_path / "f", [page, page, b"end", page]) == bytes(2 * mmap.PAGESIZE) + b"end" + bytes(page)
    if not flags[0]:
        pytest.skip("no direct writes on this file system")
    assert flags == [True, True, True, False, False]


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Path, flags: int, mode: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "no direct writes")
        return real(path, flags, mode)

    monkeypatch.setattr(direct_file.os, "open", refusing)
    assert write(tmp_path / "f", [b"abc", b"d" * 9000]) == b"abc" + b"d" * 9000


def test_a_folder_that_cant_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "nowhere" / "f")
