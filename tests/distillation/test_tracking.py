"""Tracking: what an event file holds, that it goes on where a run was stopped, and that no weight knows of it."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from distillation_pair import Pair
from forks import forked

from ffn_fusion.distillation.distill import Distilled, distill_child
from ffn_fusion.distillation.settings import PARTS, DistillSettings
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import Weights
from ffn_fusion.errors import MissingExtraError, UsageError
from ffn_fusion.processes import silent

SETTINGS = DistillSettings(batch=4, micro=2, learning_rate=1e-3, warmup=0.0, save_every=2)
SHOWN = ("loss", *PARTS, "learning_rate", "grad_norm", "tokens_per_second")
Progress = Callable[[str, int, int], None]


def train(pair: Pair, work: Path, logs: Path | None, progress: Progress = silent) -> Distilled:
    tracking = Tracking("tensorboard", logs) if logs else None
    training = Training(pair.child, pair.parent, pair.texts(24), work, settings=SETTINGS, tracking=tracking)
    return distill_child(training, progress=progress)


def same(one: Weights, two: Weights) -> bool:
    return all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) one after another, as TensorBoard reads the one run of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_event_file_holds_the_record(pair: Pair, tmp_path: Path) -> None:
    done = train(pair, tmp_path / "w", tmp_path / "logs")
    shown = scalars(tmp_path / "logs")
    history = done.record["history"]
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", *PARTS):
        assert shown[f"train/{name}"] == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in history]
    values = {name: [value for _, value in shown[f"train/{name}"]] for name in SHOWN}
    assert {len(found) for found in values.values()} == {6}
    assert min(values["tokens_per_second"]) > 0
    assert max(values["learning_rate"]) == pytest.approx(1e-3)
    assert min(values["grad_norm"]) > 0


def test_the_weights_know_nothing_of_it_and_it_goes_on(pair: Pair, tmp_path: Path) -> None:
    """Stopped and resumed with another log or none, the same bits; every step stands once in the log."""
    plain = train(pair, tmp_path / "plain", None)

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    work, logs = tmp_path / "w", tmp_path / "logs"
    with pytest.raises(KeyboardInterrupt):
        train(pair, work, logs, progress=stop)  # step 3 is in the log, the checkpoint is of step 2
    assert (work / "checkpoint-2").is_dir()
    found = train(pair, work, logs)
    assert same(found.weights, plain.weights)
    assert found.record == plain.record
    shown = scalars(logs)["train/loss"]
    assert shown == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in plain.record["history"]]

    with pytest.raises(KeyboardInterrupt):
        train(pair, tmp_path / "v", None, progress=stop)
    assert same(train(pair, tmp_path / "v", tmp_path / "later").weights, plain.weights)
    assert [step for step, _ in scalars(tmp_path / "later")["train/loss"]] == [3, 4, 5, 6]


def test_another_training_has_its_own_log(pair: Pair, tmp_path: Path) -> None:
    trainings = [
        Training(pair.child, pair.parent, pair.texts(), tmp_path, settings) for settings in (SETTINGS, SETTINGS)
    ]
    tracked = replace(trainings[1], tracking=Tracking("trackio", tmp_path))
    assert trainings[0].key() == tracked.key()
    assert trainings[0].key()[:8] != replace(trainings[0], seed=1).key()[:8]


def train_with_a_stop(pair: Pair, work: Path, tracking: Tracking) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    training = Training(pair.child, pair.parent, pair.texts(24), work, settings=SETTINGS, tracking=tracking)
    with suppress(KeyboardInterrupt):
        distill_child(training, progress=stop)
    distill_child(training)


@pytest.mark.slow
def test_trackio(pair: Pair, tmp_path: Path) -> None:
    """In a process of its own, as trackio reads its folder when it's imported; stopped, it goes on in the same run."""
    pytest.importorskip("trackio")
    work, logs = tmp_path / "w", tmp_path / "logs"
    done = forked(partial(train_with_a_stop, pair, work, Tracking("trackio", logs)))
    assert done.wait() == 0, done.stderr
    assert done.stdout == ""
    with sqlite3.connect(logs / "ffn-fusion.db") as base:
        rows = base.execute("select run_name, metrics from metrics order by step").fetchall()
    found = [(run, json.loads(metrics)) for run, metrics in rows]
    kept = [(run, metrics["train/global_step"]) for run, metrics in found if "train/loss" in metrics]
    training = Training(pair.child, pair.parent, pair.texts(24), work, SETTINGS)
    assert kept == [(training.key()[:8], step) for step in (1, 2, 3, 3, 4, 5, 6)]  # step 3 was after the checkpoint
    assert {f"train/{name}" for name in SHOWN} <= set(found[0][1])


def test_mistakes_are_one_line(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'paper' isn't one of tensorboard, trackio, none"):
        Tracking("paper", tmp_path)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match="tracking needs tensorboard"):
        train(pair, tmp_path / "w", tmp_path / "logs")
    assert not list(tmp_path.iterdir())
