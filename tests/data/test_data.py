from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_text, write_tokenizer

from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.text import BUILT_IN_CALIBRATION, BUILT_IN_HELD_OUT, read_documents
from ffn_fusion.data.windows import make_windows
from ffn_fusion.errors import CheckpointError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def test_windows_are_the_text(folder: Path) -> None:
    text = tiny_text(folder / "a.txt")
    tokenizer = load_tokenizer(folder / "tokenizer")
    windows = make_windows(tokenizer, text, 64, 640)
    assert windows.ids_NT.shape == (10, 64)
    assert windows.label == "a"
    whole = text.read_text()
    assert all(tokenizer.decode(row) in whole for row in windows.ids_NT)
    assert len({tuple(row) for row in windows.ids_NT}) == 10


def test_seed_chooses(folder: Path) -> None:
    text, tokenizer = tiny_text(folder / "a.txt", 2000), load_tokenizer(folder / "tokenizer")
    first, again, other = (make_windows(tokenizer, text, 64, 256, seed=seed).ids_NT for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_short_documents_are_joined_by_the_end_token(folder: Path) -> None:
    (folder / "p.jsonl").write_text('{"text": "abc"}\n{"text": "defg"}\n' * 10)
    windows = make_windows(load_tokenizer(folder / "tokenizer"), folder / "p.jsonl", 16, 48)
    assert (windows.ids_NT == 257).sum() >= 3


def test_windows_begin_with_the_start_token_where_texts_do(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", bos=True)
    windows = make_windows(load_tokenizer(tmp_path / "tokenizer"), tiny_text(tmp_path / "a.txt"), 32, 128)
    assert windows.ids_NT.shape == (4, 32)
    assert (windows.ids_NT[:, 0] == 256).all()
    assert (windows.ids_NT[:, 1:] != 256).all()


def test_a_short_text_gives_what_it_has(folder: Path) -> None:
    text = tiny_text(folder / "a.txt", 30)
    assert make_windows(load_tokenizer(folder / "tokenizer"), text, 64, 10**6).ids_NT.shape[0] >= 2


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n \n", "holds no text"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("bad.jsonl", b'{"text": "ok"}\n{"other": 1}', "bad.jsonl:2"),
        ("short.txt", b"too short", "2 are needed"),
    ],
)
def test_unusable_texts(folder: Path, name: str, content: bytes, line: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=line) as caught:
        make_windows(load_tokenizer(folder / "tokenizer"), folder / name, 64, 128)
    assert name in caught.value.message
    assert caught.value.hint


def test_missing_text_and_empty_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_documents(folder / "nowhere.txt")
    (folder / "void").mkdir()
    with pytest.raises(DataError, match=r"no \.txt"):
        read_documents(folder / "void")


def test_folders_are_read_in_order(folder: Path) -> None:
    texts = folder / "texts"
    (texts / "b").mkdir(parents=True)
    (texts / "b" / "2.txt").write_text("second")
    (texts / "a.txt").write_text("first")
    (texts / "notes.md").write_text("not text for us")
    assert read_documents(texts) == ["first", "second"]


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_what_pieces_leave_over_is_used_where_the_text_is_short(folder: Path) -> None:
    """A text of 1,000 tokens in pieces of one window and a half gives nearly all of them."""
    (folder / "a.txt").write_text("".join(f"{i:03d} " for i in range(250)))
    windows = make_windows(load_tokenizer(folder / "tokenizer"), folder / "a.txt", 30, 10**6)
    assert windows.ids_NT.size > 900


def test_lines_that_are_no_documents(folder: Path) -> None:
    """Cut at line ends only, blank lines left out."""
    (folder / "a.jsonl").write_text('{"text": "one\u2028still one"}\n\n{"text": " "}\n{"text": "two"}\n', "utf-8")
    assert read_documents(folder / "a.jsonl") == ["one\u2028still one", "two"]


def test_built_in_texts_are_broad_small_and_apart() -> None:
    assert [t.stem for t in BUILT_IN_CALIBRATION] == [t.stem for t in BUILT_IN_HELD_OUT]
    assert len(BUILT_IN_CALIBRATION) == 5
    calibration, held_out = (
        "\n".join(str(d) for text in texts for d in read_documents(text))
        for texts in (BUILT_IN_CALIBRATION, BUILT_IN_HELD_OUT)
    )
    assert all(text.stat().st_size >= 25_000 for text in BUILT_IN_CALIBRATION)
    assert all(text.stat().st_size >= 8_000 for text in BUILT_IN_HELD_OUT)
    assert len(calibration) + len(held_out) < 500_000
    shared = {line for line in held_out.splitlines() if len(line) > 60} & set(calibration.splitlines())
    assert not shared
