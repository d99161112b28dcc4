"""Stopped anywhere, the same call goes on to the same bits."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from distillation_pair import Pair
from forks import Fork, forked

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation import trainer
from ffn_fusion.distillation.checkpoints import mark_whole, newest, remove_torn
from ffn_fusion.distillation.distill import Distilled, distill_child
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.training import Training
from ffn_fusion.errors import OutputError

SETTINGS = DistillSettings(batch=4, micro=1, learning_rate=1e-3, save_every=2)
WINDOWS = 24
Progress = Callable[[str, int, int], None]


def train(
    pair: Pair, work: Path, settings: DistillSettings = SETTINGS, progress: Progress | None = None, seed: int = 0
) -> Distilled:
    texts = pair.texts(WINDOWS)
    told = progress or (lambda *words: None)
    return distill_child(Training(pair.child, pair.parent, texts, work, settings=settings, seed=seed), progress=told)


def same(one: Checkpoint, two: Checkpoint) -> bool:
    return all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """Six steps without a stop."""
    return train(pair, tmp_path_factory.mktemp("whole") / "w")


def test_stopped_at_any_step(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    """Before the first checkpoint, right behind one and between two; what's done isn't done again."""
    steps: list[int] = []

    def stop_at(step: int) -> Progress:
        def progress(what: str, done: int, total: int) -> None:
            steps.append(done)
            if done == step:
                raise KeyboardInterrupt

        return progress

    for step in (1, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            train(pair, tmp_path / "w", progress=stop_at(step))
    found = train(pair, tmp_path / "w", progress=stop_at(-1))
    assert steps == [0, 1, 0, 1, 2, 3, 2, 3, 4, 2, 3, 4, 5, 6]
    assert same(found.weights, whole.weights)
    assert found.record == whole.record
    train(pair, tmp_path / "w", progress=stop_at(-1))  # nothing is left to do
    assert steps[-1] == 6
    assert len(steps) == 14


def test_it_matters_where_it_stopped(whole: Distilled) -> None:
    """The check above can fail: the weights of another step are others."""
    assert whole.weights.folder.name == "checkpoint-6"
    from ffn_fusion.checkpoint.reader import open_folder

    assert not same(open_folder(whole.weights.folder.with_name("checkpoint-4")), whole.weights)


def test_other_settings_begin_anew(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    train(pair, tmp_path / "w", seed=1)
    found = train(pair, tmp_path / "w")
    assert same(found.weights, whole.weights)


def test_a_torn_checkpoint_does_not_count(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    work = tmp_path / "w"
    with pytest.raises(KeyboardInterrupt):
        train(pair, work, progress=stop)
    weights = work / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    saved = newest(work)
    assert saved is not None
    assert saved.step == 2
    found = train(pair, work)
    assert same(found.weights, whole.weights)


def test_marks(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "x").write_text("x")
        if step != 10:
            mark_whole(folder)
    (tmp_path / "checkpoint-x").mkdir()
    saved = newest(tmp_path)
    assert saved is not None
    assert saved.step == 9
    remove_torn(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-9", "checkpoint-x"]
    assert newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    pair: Pair, whole: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    saved = trainer.Trainer._save_optimizer_and_scheduler

    def full(self: trainer.Trainer, folder: str) -> None:
        if self.state.global_step == 4:
            raise error
        saved(self, folder)

    monkeypatch.setattr(trainer.Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OutputError, match="checkpoint-4: can't be written") as caught:
        train(pair, tmp_path / "w")
    assert "continues from step 2" in caught.value.hint
    monkeypatch.undo()
    assert same(train(pair, tmp_path / "w").weights, whole.weights)


def slowly(*_: object) -> None:
    """Leave time for a signal before the end."""
    time.sleep(0.3)


@pytest.mark.slow
def test_killed(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    """SIGKILL at a moment of its own choosing, again and again; then it's let through."""
    work = tmp_path / "w"
    for step in (2, 4):
        process = Fork(partial(train, pair, work, progress=slowly))
        while process.poll() is None and not (work / f"checkpoint-{step}").exists():
            time.sleep(0.002)
        time.sleep(0.01 * step)  # while it's written, or just after
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert forked(partial(train, pair, work)).wait() == 0
    found = newest(work)
    assert found is not None
    from ffn_fusion.checkpoint.reader import open_folder

    assert same(open_folder(found.folder), whole.weights)
