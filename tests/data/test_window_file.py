"""Windows on disk: those of memory, whatever interrupts their writing, and never all of them in memory."""

from __future__ import annotations

import json
import pickle
import signal
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from forks import Fork
from tiny import write_tokenizer

from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data import source, window_file
from ffn_fusion.data.window_file import read_origin, write_windows
from ffn_fusion.data.window_rows import TokenWindows, WindowRows
from ffn_fusion.data.windows import count_windows, make_windows
from ffn_fusion.errors import DataError, OutputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """About twelve buffers."""
    monkeypatch.setattr(source, "BUFFER", 400)
    lines = [json.dumps({"text": f"{i} says {i * 7919 % 1000} " * (1 + i % 5)}) for i in range(120)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    return tmp_path / "t.jsonl"


def ids(windows: TokenWindows) -> list[list[int]]:
    return windows.ids_NT.tolist()  # type: ignore[no-any-return]


def test_they_are_those_of_memory(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    for tokens in (16, 320, 10**6):
        written = write_windows(tokenizer, text, 16, tokens, tmp_path / str(tokens))
        made = make_windows(tokenizer, text, 16, tokens)
        assert ids(written) == ids(made)
        assert (written.label, written.tokens) == (made.label, made.tokens)
        assert (tmp_path / f"{tokens}.bin").stat().st_size == 2 * written.tokens
        rows, those = WindowRows([written, written.part(1, 2)]), WindowRows([made, made.part(1, 2)])
        assert rows.content == those.content
        assert rows[[0, len(rows) - 1]].tolist() == [ids(made)[0], ids(made)[1]]
    assert read_origin(tmp_path / "16") == {"source": str(text)}


def test_the_seed_shuffles_every_buffer(tokenizer: Any, text: Path) -> None:
    one, two = (ids(make_windows(tokenizer, text, 16, 10**6, seed=seed)) for seed in (0, 1))
    assert len(one) > 100
    assert all(one[i : i + 5] != two[i : i + 5] for i in range(0, 95, 5))


def test_wide_vocabularies_take_four_bytes(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    class Wide:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return tokenizer(*args, **options)

        def get_vocab(self) -> dict[str, int]:
            return {"last": 1 << 16}

    written = write_windows(Wide(), text, 16, 320, tmp_path / "w")
    assert (tmp_path / "w.bin").stat().st_size == 4 * written.tokens
    assert ids(written) == ids(make_windows(tokenizer, text, 16, 320))


def test_stopped_anywhere_it_goes_on_to_the_same_bits(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    """What a buffer gave isn't tokenised again."""
    write_windows(tokenizer, text, 16, 10**6, tmp_path / "whole")
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        assert what == "tokens"
        seen.append(done)
        if len(seen) % 4 == 0:
            raise KeyboardInterrupt

    for _ in range(99):
        try:
            write_windows(tokenizer, text, 16, 10**6, tmp_path / "w", progress=stop)
            break
        except KeyboardInterrupt:
            with (tmp_path / "w.bin").open("ab") as torn:
                torn.write(b"what a killed call left")
    assert len(seen) > 12
    starts = [done for before, done in pairwise(seen) if done <= before]
    assert len(starts) >= 3
    assert starts == sorted(set(starts))
    for end in (".bin", ".json"):
        assert (tmp_path / f"w{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()
    stamp = (tmp_path / "w.bin").stat().st_mtime_ns
    write_windows(tokenizer, text, 16, 10**6, tmp_path / "w")
    assert (tmp_path / "w.bin").stat().st_mtime_ns == stamp


def test_anything_else_begins_anew(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "w"
    write_windows(tokenizer, text, 16, 10**6, file, seed=1)
    assert ids(write_windows(tokenizer, text, 16, 10**6, file)) == ids(make_windows(tokenizer, text, 16, 10**6))
    text.write_text(text.read_text() + '\n{"text": "one more"}')
    assert ids(write_windows(tokenizer, text, 16, 10**6, file)) == ids(make_windows(tokenizer, text, 16, 10**6))
    (tmp_path / "w.bin").write_bytes(b"")
    assert ids(write_windows(tokenizer, text, 16, 10**6, file)) == ids(make_windows(tokenizer, text, 16, 10**6))


def test_an_endless_text_is_read_as_far_as_needed(
    tokenizer: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def endless(file: Path, after: int = 0) -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"document {taken} " * 3

    monkeypatch.setattr(source, "read_records", endless)
    monkeypatch.setattr(window_file, "_WRITTEN", 4)
    written = write_windows(tokenizer, text, 16, 16_000, tmp_path / "w")
    assert written.ids_NT.shape == (1000, 16)
    assert 300 < taken < 600
    taken = 0
    assert count_windows(tokenizer, text, 16, 10**12).ids_NT.shape == (10**12 // 16, 16)  # and no memory for them
    assert taken < 60


def test_counting_is_exact_where_the_text_is_short(tokenizer: Any, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUFFER", 1 << 20)
    for tokens in (320, 10**6):
        there = make_windows(tokenizer, text, 16, tokens).ids_NT.shape
        assert count_windows(tokenizer, text, 16, tokens).ids_NT.shape == there


def test_another_process_gets_the_name_alone(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    written = write_windows(tokenizer, text, 16, 10**6, tmp_path / "w")
    part = written.part(3, 60)
    sent = pickle.dumps(part)
    assert len(sent) < 700 < part.ids_NT.nbytes
    assert ids(pickle.loads(sent)) == ids(written)[3:60]
    assert pickle.loads(pickle.dumps(part.in_memory())).ids_NT.dtype == np.int64
    assert ids(written.part(5, 5)) == []
    (tmp_path / "w.bin").unlink()
    with pytest.raises(DataError, match="can't be read") as caught:
        pickle.loads(sent)
    assert "one disk" in caught.value.hint


def test_mistakes_leave_nothing(tokenizer: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left() -> list[str]:
        return sorted(path.name for path in (tmp_path / "f").iterdir() if path.suffix != ".lock")

    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "bad.jsonl").write_text("no JSON")
    for name, says in (("short.txt", "too short: 0 window of 16"), ("bad.jsonl", "not JSON"), ("none", "no such file")):
        with pytest.raises(DataError, match=says):
            write_windows(tokenizer, tmp_path / name, 16, 320, tmp_path / "f" / "w")
        assert left() == []
    text.write_text(text.read_text() + "\nno JSON")
    with pytest.raises(DataError, match="not JSON"):
        write_windows(tokenizer, text, 16, 10**6, tmp_path / "f" / "w")
    assert left() == ["w.bin", "w.json"]  # many buffers are there, and it goes on where this is mended


def test_a_full_disk(tokenizer: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="needs 2,000,000"):
        write_windows(tokenizer, text, 16, 10**15, tmp_path / "w")
    synced = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 6:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(window_file.os, "fsync", full)
        with pytest.raises(OutputError, match="No space left") as caught:
            write_windows(tokenizer, text, 16, 10**6, tmp_path / "w")
    assert "resume" in caught.value.hint
    assert json.loads((tmp_path / "w.json").read_text())["buffers"] == 3
    assert ids(write_windows(tokenizer, text, 16, 10**6, tmp_path / "w")) == ids(
        make_windows(tokenizer, text, 16, 10**6)
    )


def test_one_writer_at_a_time(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    def second(what: str, done: int, total: int) -> None:
        write_windows(tokenizer, text, 16, 320, tmp_path / "w")

    with pytest.raises(OutputError, match="another process writes"):
        write_windows(tokenizer, text, 16, 320, tmp_path / "w", progress=second)


def write_slowly(tokenizer: Path, text: Path, target: Path) -> None:
    """Leave time for a signal before the end."""
    with patch.object(source, "BUFFER", 400):
        write_windows(load_tokenizer(tokenizer), text, 16, 10**6, target, progress=lambda *_: time.sleep(0.05))


@pytest.mark.slow
def test_killed(tokenizer: Any, text: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of it."""
    write_tokenizer(tmp_path / "tokenizer")
    process = Fork(partial(write_slowly, tmp_path / "tokenizer", text, tmp_path / "w"))
    while process.poll() is None and not (tmp_path / "w.json").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    note = json.loads((tmp_path / "w.json").read_text())
    assert not note["whole"]
    went_on: list[int] = []
    own = load_tokenizer(tmp_path / "tokenizer")
    written = write_windows(own, text, 16, 10**6, tmp_path / "w", progress=lambda _, done, __: went_on.append(done))
    assert went_on[0] == 16 * note["windows"] > 0
    assert ids(written) == ids(make_windows(own, text, 16, 10**6))
