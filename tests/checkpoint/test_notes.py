"""Notes belong to one key; what is torn or another's counts as none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffn_fusion.checkpoint.notes import Notes, write_atomic


@pytest.mark.parametrize("on_disk", [True, False])
def test_values_are_those_written_last(on_disk: bool, tmp_path: Path) -> None:
    notes = Notes(tmp_path if on_disk else None, "k")
    assert not notes.found
    assert notes.values == {}
    notes.write({"blocks": 2})
    notes.write({"windows": [1, None]})
    assert notes.found
    assert notes.values == {"windows": [1, None]}
    assert Notes(tmp_path, "k").values == ({"windows": [1, None]} if on_disk else {})
    assert not Notes(tmp_path, "another").found


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"k"', b"\xff", b"{}", b'{"key": null}'])
def test_a_damaged_file_holds_no_notes(content: bytes, tmp_path: Path) -> None:
    Notes(tmp_path, "k").write({"blocks": 2})
    (tmp_path / "notes.json").write_bytes(content)
    assert not Notes(tmp_path, "k").found
    assert not Notes(tmp_path / "notes.json", "k").found  # a file where the folder should be


def test_a_folder_is_emptied_for_another_key_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    Notes(folder, "k").claim()
    assert Notes(folder, "k").found
    (folder / "states.bin").write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text("x")
    (folder / ".lock").write_text("")
    Notes(folder, "k").claim()
    assert (folder / "states.bin").exists()
    Notes(folder, "another").claim(keep={".lock"})
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "notes.json"]
    assert Notes(folder, "another").found


def test_write_atomic_replaces_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", b"old")
    write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
