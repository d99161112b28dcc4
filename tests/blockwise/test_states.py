"""States in files and in memory are one thing; what's on the disk is whole at every moment."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffn_fusion.blockwise.states import FileStates, MemoryStates, States
from ffn_fusion.errors import OutputError

CPU = torch.device("cpu")


def files(folder: Path, dtype: torch.dtype = torch.float32, shape: tuple[int, int, int] = (3, 4, 5)) -> FileStates:
    return FileStates(folder, *shape, dtype, CPU)


def value(seed: int, windows: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(windows, 4, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


WHOLE = slice(0, 3)


@given(
    blocks=st.lists(st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1), min_size=1, max_size=5),
    split=st.sampled_from([(3,), (1, 2), (2, 1), (1, 1, 1)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_files_and_memory_hold_the_same(blocks: list[Any], split: Any, dtype: Any, tmp_path_factory: Any) -> None:
    """Whatever is written in whatever pieces, both give back the same; what wasn't written again is gone."""
    folder = tmp_path_factory.mktemp("states")
    both: list[States] = [MemoryStates(3), files(folder, dtype)]
    for i, slots in enumerate(blocks):
        for states in both:
            for k, slot in enumerate(sorted(slots)):
                tensor, start = value(10 * i + k, dtype=dtype), 0
                for count in split:
                    states.write(slot, slice(start, start + count), tensor[start : start + count])
                    start += count
            states.turn()
        for k, slot in enumerate(sorted(slots)):
            want = value(10 * i + k, dtype=dtype)
            for states in both:
                assert torch.equal(states.read(slot, WHOLE), want)
                assert torch.equal(states.read(slot, slice(1, 3), slice(1, 3)), want[1:3, 1:3])
                assert torch.equal(states.read(slot, slice(2, 3), slice(3, 4)), want[2:3, 3:4])
        for name in "abc":
            assert len({states.count(name) for states in both} | {sum(slot[0] == name for slot in slots)}) == 1
    both[1].close()  # type: ignore[attr-defined]
    assert not list(folder.iterdir())


def test_half_a_block_written_is_as_if_it_wasn_t(tmp_path: Path) -> None:
    states = files(tmp_path)
    for i in range(3):
        for name in ("", "v"):
            states.write((name, 0), WHOLE, value(i))
        states.turn()
    stamp = states.stamp()
    states.write(("", 0), slice(0, 2), value(99)[:2])  # and then the process dies
    states.close(keep=True)
    again = files(tmp_path)
    assert again.restore(stamp)
    assert torch.equal(again.read(("v", 0), WHOLE), value(2))
    assert torch.equal(again.read(("", 0), WHOLE), value(2))


@pytest.mark.parametrize("harm", ["zero", "older", "short", "gone"])
def test_a_disk_that_lost_something_is_noticed(harm: str, tmp_path: Path) -> None:
    states = files(tmp_path)
    for i in range(2):
        states.write(("", 0), WHOLE, value(i))
        states.turn()
    stamp = states.stamp()
    states.close(keep=True)
    file = tmp_path / f"states-{stamp['file']}.bin"
    content = bytearray(file.read_bytes())
    if harm == "zero":
        content[8:16] = bytes(8)
    elif harm == "older":
        content[:] = (tmp_path / f"states-{1 - stamp['file']}.bin").read_bytes()
    elif harm == "short":
        del content[-4:]
    file.write_bytes(b"" if harm == "gone" else bytes(content))
    assert not files(tmp_path).restore(stamp)


def test_files_outlive_an_exception_alone(tmp_path: Path) -> None:
    """As a context: what an exception leaves can be resumed, what is done is removed, a temporary folder always."""
    with pytest.raises(KeyboardInterrupt), files(tmp_path) as states:
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["states-0.bin", "states-1.bin"]
    with files(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with FileStates(None, 3, 4, 2, torch.float32, torch.device("cpu")) as states:
        folder = states._folder
        assert folder.is_dir()
    assert not folder.exists()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = files(tmp_path)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        states.write(("", 0), WHOLE, value(0))
    assert "resumes" in caught.value.hint


def test_nothing_survives_in_memory() -> None:
    states = MemoryStates(3)
    states.write(("", 0), WHOLE, value(0))
    states.turn()
    assert not states.restore(states.stamp())
