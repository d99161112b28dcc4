from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.checkpoint import direct_file
from ffn_fusion.checkpoint.direct_file import DirectFile


def write(path: Path, pieces: list[bytes]) -> bytes:
    with closing(DirectFile(path)) as file:
        for piece in pieces:
            file.write(piece)
        file.finish()
    return path.read_bytes()


@given(st.lists(st.integers(0, 20_000), max_size=8), st.sampled_from([4096, 8192]))
def test_what_is_written_is_there(tmp_path: Path, sizes: list[int], block: int) -> None:
    pieces = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_file, "_BLOCK", block)
        assert write(tmp_path / "f", pieces) == b"".join(pieces)


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
