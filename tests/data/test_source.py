"""Files are read in one order, from any place on, and never whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from ffn_fusion.data import source
from ffn_fusion.data.conversation import Conversation
from ffn_fusion.data.source import LocalText, buffers, check_source
from ffn_fusion.data.text import read_documents
from ffn_fusion.errors import DataError, MissingExtraError

SAID = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of every kind, empty documents among them."""
    lines = [json.dumps({"text": f"line {i} " * (1 + i % 4)}) for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:4], "", '{"text": " "}', *lines[4:]]))
    write_parquet(tmp_path / "b.parquet", text=[f"row {i}" if i % 4 else None for i in range(10)], id=list(range(10)))
    (tmp_path / "c.txt").write_text("word " * 40 + "\u00e9" * 30)
    write_parquet(tmp_path / "d.parquet", messages=[SAID, SAID])
    return tmp_path


def test_from_any_place_on(folder: Path) -> None:
    reader, places, pieces = LocalText(folder).reader(16), [], []
    for some in reader:
        pieces.append(some)
        places.append(json.loads(json.dumps(reader.position())))
    assert len(pieces) > 30
    for count, place in enumerate(places, 1):
        assert list(LocalText(folder).reader(16, place)) == pieces[count:]


def test_every_kind_is_read(folder: Path) -> None:
    assert read_documents(folder / "b.parquet") == ["row 1", "row 2", "row 3", "row 5", "row 6", "row 7", "row 9"]
    said = read_documents(folder / "d.parquet")[1]
    assert isinstance(said, Conversation)
    assert said.place == f"{folder / 'd.parquet'}: row 2"
    assert [message.content for message in said.messages] == ["Why?", "Because."]
    whole = read_documents(folder)
    assert len(whole) == 9 + 7 + 1 + 2


def test_row_groups_behind_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Any] = []
    iterate = parquet.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        groups.append(options["row_groups"])
        return iterate(self, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", watched)
    path = folder / "b.parquet"
    assert list(LocalText(path).reader(16, {"file": 0, "taken": 7})) == [["row 7"], ["row 9"]]
    assert list(LocalText(path).reader(16, {"file": 0, "taken": 10})) == []
    assert groups == [[2, 3], []]


def test_buffers_hold_no_more_than_they_should(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUFFER", 50)
    reader = LocalText(folder).reader(16)
    sizes = [sum(len(piece) for piece in held) for held in buffers(reader) if all(isinstance(p, str) for p in held)]
    assert len(sizes) > 5
    assert max(sizes) < 50 + 36  # a document more


def test_a_long_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.jsonl").write_text('{"text": "some words here"}\n' * 50 + "what isn't reached isn't checked")
    monkeypatch.setattr(source, "BUFFER", 100)
    check_source(tmp_path / "long.jsonl")
    with pytest.raises(DataError, match=r"long\.jsonl:51: not JSON"):
        list(buffers(LocalText(tmp_path / "long.jsonl").reader(16)))


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a.parquet", text=["some words"] * 10).read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"torn\.parquet: not a whole parquet file"):
        check_source(tmp_path / "torn.parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="not a whole parquet file"):
        check_source(tmp_path / "empty.parquet")
    write_parquet(tmp_path / "b.parquet", content=["x"], id=[1])
    with pytest.raises(DataError, match="no text or messages field, it has content, id"):
        check_source(tmp_path / "b.parquet")
    write_parquet(tmp_path / "c.parquet", text=[1, 2])
    with pytest.raises(DataError, match="row 1: text is no text"):
        check_source(tmp_path / "c.parquet")
    write_parquet(tmp_path / "d.parquet", text=["", None])
    with pytest.raises(DataError, match="holds no text"):
        check_source(tmp_path / "d.parquet")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="parquet needs pyarrow") as caught:
        check_source(path)
    assert caught.value.hint == "pip install 'ffn-fusion[data]'"


def test_a_bad_byte_is_found_in_any_block(tmp_path: Path) -> None:
    content = b"x" * 3_000_000 + b"\n\xff" + b"x" * 10
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 3,000,001\)"):
        read_documents(tmp_path / "a.txt")
