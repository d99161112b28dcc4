"""What stays of a training that is done: first its last weights, then its record."""

from __future__ import annotations

from pathlib import Path

from ffn_fusion.distillation.checkpoints import (
    finish,
    finished,
    keep_record,
    keep_weights,
    mark_whole,
    newest,
    prepare,
    remove_torn,
)

FILES = ("model.safetensors", "config.json", "trainer_state.json")
MORE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "scaler.pt")


def checkpoint(work: Path, step: int) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir()
    for name in FILES + MORE:
        (folder / name).write_text(name)
    mark_whole(folder)
    return folder


def test_weights_stay_and_the_optimiser_goes(tmp_path: Path) -> None:
    work = tmp_path / "w"
    prepare(work, "key")
    checkpoint(work, 2)
    last = checkpoint(work, 4)
    assert finished(work, "key") is None
    finish(work, "key", {"tokens": 8})
    for _ in range(2):
        keep_weights(work)
        assert sorted(path.name for path in last.iterdir()) == sorted([*FILES, "whole.json"])
        assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-4"]
        remove_torn(work)
        found = newest(work)
        assert found is not None
        assert found.step == 4
    assert finished(work, "key") == {"tokens": 8}
    assert finished(work, "another") is None
    keep_record(work)
    assert newest(work) is None
    assert finished(work, "key") == {"tokens": 8}
    prepare(work, "key")
    assert finished(work, "key") == {"tokens": 8}
    prepare(work, "another")
    assert finished(work, "another") is None


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    prepare(tmp_path / "w", "key")
    (tmp_path / "w" / "notes.json").write_text("{")
    assert finished(tmp_path / "w", "key") is None
    assert finished(tmp_path / "nowhere", "key") is None
