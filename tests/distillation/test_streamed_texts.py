"""A distillation on a mixture that's streamed: mixed by weights, and the same bits wherever it was stopped."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow
import pytest
from forks import Fork, forked
from pyarrow import parquet
from tiny import tiny_model, tiny_text

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data import source
from ffn_fusion.errors import DataError
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.run import begin
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.surgery.build import build

Progress = Callable[[str, int, int], None]
FILES = ("model.safetensors", "config.json", "distillation.json", "README.md")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parent, child, and a folder of texts."""
    folder = tmp_path_factory.mktemp("made")
    parent = open_folder(tiny_model(folder / "parent").folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply([2, 3, 4], [(2, 3)])
    build(parent, blueprint, folder / "child", width_multiple=1)
    rows = [f"row {i} says {i * 7919 % 1000} " * (1 + i % 5) for i in range(100)]
    parquet.write_table(pyarrow.table({"text": rows}), folder / "rows.parquet", row_group_size=7)
    tiny_text(folder / "words.txt", 300)
    return folder


class Heard(Listener):
    """Passes progress on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def progress(self, what: str, done: int, total: int) -> None:
        self._progress(what, done, total)


def distil(made: Path, output: Path, progress: Progress = lambda *words: None, **changes: Any) -> None:
    texts = (f"{made / 'rows.parquet'}=3", str(made / "words.txt"))
    section = {"texts": texts, "tokens": 1024, "context": 16, "batch": 8, "learning_rate": 1e-3, "save_every": 2}
    recipe = Recipe.model_validate(
        {"model": str(made / "parent"), "output": output, "distillation": {"enabled": True, **section, **changes}}
    )
    space = Workspace.hidden(output, child=made / "child")
    begin(recipe, ("distill",), space=space, listener=Heard(progress)).carry_out()


@pytest.fixture
def whole(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(source, "BUFFER", 400)
    distil(made, tmp_path / "better")
    return tmp_path / "better"


def same(one: Path, two: Path) -> bool:
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


def test_stopped_while_it_reads_and_while_it_trains(made: Path, whole: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    stops = [("tokens", 500), ("distillation", 3), ("distillation", 6)]

    def stop(what: str, done: int, total: int) -> None:
        calls.append((what, done))
        if stops and stops[0][0] == what and stops[0][1] <= done:
            stops.pop(0)
            raise KeyboardInterrupt

    again = tmp_path / "again" / "better"
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            distil(made, again, stop)
    assert (again.with_name(".better.work") / ".windows").is_dir()
    distil(made, again, stop)
    assert same(again, whole)
    assert list(again.parent.iterdir()) == [again]
    first, *others = [i for i, (what, done) in enumerate(calls) if what == "tokens" and not done]
    assert first == 0
    assert len(others) == 1  # the first text went on, the second began once, and then both were there
    assert [done for what, done in calls if what == "distillation"] == [0, 1, 2, 3, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]


def test_what_it_learnt_from(made: Path, whole: Path) -> None:
    record = json.loads((whole / "distillation.json").read_text())
    assert record["sources"] == [
        {"text": "rows", "tokens": 768},
        {"text": "words", "tokens": 256},
    ]
    assert "rows.parquet" not in (whole / "distillation.json").read_text()
    assert [gain["tokens"] for gain in record["gains"]] == [64, 64]


def test_mistakes_are_said_before_any_text_is_read(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        distil(made, tmp_path / "n", texts=(str(tmp_path / "none"),))
    with pytest.raises(DataError, match="less than one batch of 8"):
        distil(made, tmp_path / "n", texts=(str(made / "words.txt"),), tokens=64)
    assert not list(tmp_path.iterdir())


def distil_slowly(made: Path, output: Path) -> None:
    """Leave time for a signal before the end."""
    with patch.object(source, "BUFFER", 400):
        distil(made, output, lambda *_: time.sleep(0.1))


@pytest.mark.slow
def test_killed(made: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL while the text is read, and while the child is trained."""
    again = tmp_path / "again" / "better"
    distilling = partial(distil_slowly, made, again)
    space = again.with_name(".better.work")
    windows, work = space / ".windows", space / ".distillation"
    for sign in (windows / "stage-1" / "0.json", work / "checkpoint-4"):
        process = Fork(distilling)
        while process.poll() is None and not sign.exists():
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert work.is_dir() == (sign.parent == work)
    assert forked(distilling).wait() == 0
    assert same(again, whole)
