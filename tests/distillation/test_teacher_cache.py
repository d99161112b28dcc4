"""The parent's distributions on disk: what the parent itself says, to the stored digits; resumed; trained from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distillation_pair import Pair
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.blockwise.schedule import Schedule
from ffn_fusion.distillation import teacher_cache
from ffn_fusion.distillation import write_cache as write_module
from ffn_fusion.distillation.distill import distill_child
from ffn_fusion.distillation.divergence import truncate
from ffn_fusion.distillation.objective import head_loss
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.teacher import OnlineTeacher
from ffn_fusion.distillation.teacher_cache import (
    CachedTeacher,
    CacheSettings,
    TeacherCache,
    bytes_per_token,
)
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write_cache import write_cache
from ffn_fusion.errors import DataError, OutputError, UsageError
from ffn_fusion.modeling.load import load_model

SETTINGS = DistillSettings(batch=4, micro=2, learning_rate=1e-3, save_every=99, objective=Objective(cosine=0.0))


def ids_of(pair: Pair, windows: int = 12) -> torch.Tensor:
    return torch.from_numpy(pair.texts(windows)[0].ids_NT)


def log_probabilities(pair: Pair, ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The parent by transformers: [N, T - 1, V]."""
    with torch.no_grad():
        logits = load_model(pair.parent.folder, torch.float32)(ids).logits[:, :-1]
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize(("k", "temperature"), [(5, 1.0), (60, 2.0), (61, 1.0), (99, 1.0)])
def test_it_holds_what_the_parent_says(pair: Pair, tmp_path: Path, k: int, temperature: float) -> None:
    ids = ids_of(pair, 20)  # more than a shard
    cache = write_cache(pair.parent, ids, CacheSettings(tmp_path / "c", k, temperature))
    log_p = log_probabilities(pair, ids, temperature)
    for windows in ([0], [19, 3], list(range(20))):
        kept, want = cache.read(windows), truncate(log_p[windows].flatten(0, 1), k)
        full = log_p[windows].flatten(0, 1)
        assert torch.allclose(kept.log_p_Rk, want.log_p_Rk, rtol=1e-3, atol=1e-3)
        assert torch.allclose(full.gather(-1, kept.ids_Rk), kept.log_p_Rk, rtol=1e-3, atol=1e-3)
        assert (kept.log_tail_R is None) == (k >= 61)
        if want.log_tail_R is not None and kept.log_tail_R is not None:
            assert torch.allclose(kept.log_tail_R, want.log_tail_R, atol=1e-4)
    p = log_p.exp().sort(-1, descending=True).values
    assert cache.about["tail_mass"] == pytest.approx(float(p[..., k:].sum(-1).mean()), abs=1e-4)
    assert (cache.about["left_out_nats"] == 0) == (k >= 60)  # a tail of one token is known as well as the rest
    shards = sorted((tmp_path / "c").glob("teacher-*.safetensors"))
    stored = sum(path.stat().st_size for path in shards)
    assert [path.name for path in (tmp_path / "c").iterdir() if path not in shards] == ["teacher.json"]
    assert stored == pytest.approx(20 * 15 * bytes_per_token(k, 61), abs=len(shards) * 600)


def test_bytes_a_token() -> None:
    assert bytes_per_token(64, 49_152) == 64 * 4 + 4
    assert bytes_per_token(64, 128_256) == 64 * 6 + 4
    assert bytes_per_token(64, 61) == 61 * 4


@given(ids=st.lists(st.integers(0, 65_535), min_size=1), vocabulary=st.sampled_from([65_536, 65_537]))
def test_ids_survive_in_16_bits(ids: list[int], vocabulary: int) -> None:
    narrow = teacher_cache.narrow_ids(torch.tensor(ids), vocabulary)
    assert narrow.dtype == (torch.int16 if vocabulary == 65_536 else torch.int32)
    assert teacher_cache.wide_ids(narrow).tolist() == ids


def test_the_whole_distribution_teaches_as_the_parent_does(pair: Pair, tmp_path: Path) -> None:
    """k = V: the same loss and gradient as with the parent beside the child, to the digits of float16."""
    ids, objective = ids_of(pair, 4), Objective(cosine=0.0)
    cache = write_cache(pair.parent, ids, CacheSettings(tmp_path / "c", 61))
    online = OnlineTeacher(pair.parent, [], torch.float32, "cpu")
    hidden = torch.randn(2 * 15, 32, generator=torch.Generator().manual_seed(0))
    head, found = torch.randn(61, 32, generator=torch.Generator().manual_seed(1)), []
    for teacher in (CachedTeacher(cache, "cpu"), online):
        h = hidden.clone().requires_grad_()
        loss, *_ = head_loss(h, head, teacher.teach(ids[[3, 1]], [3, 1]).target, ids[[3, 1], 1:].flatten(), objective)
        loss.backward()
        assert h.grad is not None
        found.append((float(loss.detach()), h.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    assert float((found[0][1] - found[1][1]).norm() / found[1][1].norm()) < 2e-3


def test_trained_from_a_cache(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About what the parent beside the child gives, and the parent is never loaded."""
    one = distill_child(Training(pair.child, pair.parent, pair.texts(), tmp_path / "w1", settings=SETTINGS))
    monkeypatch.setattr("ffn_fusion.distillation.distill.OnlineTeacher", None)
    losses = {}
    for k in (8, 61):
        cache = CacheSettings(tmp_path / f"c{k}", k)
        done = distill_child(
            Training(pair.child, pair.parent, pair.texts(), tmp_path / "w2", settings=SETTINGS, cache=cache)
        )
        losses[k] = [row["divergence"] for row in done.record["history"]]
        assert done.record["cache"]["k"] == k
        assert done.record["cache"]["bytes_per_token"] == bytes_per_token(k, 61)
    whole = [row["divergence"] for row in one.record["history"]]
    assert losses[61] == pytest.approx(whole, rel=2e-3)
    assert all(part <= all_of_it for part, all_of_it in zip(losses[8], whole, strict=True))
    assert min(losses[8]) > 0


def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(pair, 40)  # three shards
    want = write_cache(pair.parent, ids, CacheSettings(tmp_path / "whole", 7))
    save, saved = write_module._save_shard, []

    def stop(path: Path, *more: object) -> None:
        saved.append(path.name)
        if len(saved) in (1, 3):
            raise KeyboardInterrupt
        save(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(write_module, "_save_shard", stop)
    again = CacheSettings(tmp_path / "c", 7)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_cache(pair.parent, ids, again)
        with pytest.raises(DataError, match="isn't complete"):
            TeacherCache(again.folder)
    got = write_cache(pair.parent, ids, again)
    assert [name[8:13] for name in saved] == ["00000", "00000", "00001", "00001", "00002"]  # none was written twice
    assert got.about == want.about
    for path in want.folder.iterdir():
        assert (got.folder / path.name).read_bytes() == path.read_bytes()
    write_cache(pair.parent, ids, again)
    assert len(saved) == 5  # there is nothing left to do


def test_weights_streamed_a_shard_at_a_time_give_the_same(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, schedule = ids_of(pair, 20), write_module.Writing._schedule
    one = write_cache(pair.parent, ids, CacheSettings(tmp_path / "one", 7))

    def small(self: write_module.Writing, windows: int) -> Schedule:
        return replace(schedule(self, windows), resident=False, chunk=16)

    monkeypatch.setattr(write_module.Writing, "_schedule", small)
    two = write_cache(pair.parent, ids, CacheSettings(tmp_path / "two", 7))
    for name in ("teacher-00000.safetensors", "teacher-00001.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="too little"):
        write_cache(pair.parent, ids, CacheSettings(tmp_path / "n", 7), memory=1 << 10)


def test_mistakes(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, cache = ids_of(pair), CacheSettings(tmp_path / "c", 7)
    with pytest.raises(DataError, match="no teacher cache"):
        TeacherCache(tmp_path / "c")
    write_cache(pair.parent, ids, cache)
    for other in (replace(cache, k=8), replace(cache, temperature=2.0)):
        with pytest.raises(OutputError, match="something else"):
            write_cache(pair.parent, ids, other)
    with pytest.raises(OutputError, match="something else"):
        write_cache(pair.parent, ids[:5], cache)
    with pytest.raises(UsageError, match="hidden states"):
        distill_child(
            Training(pair.child, pair.parent, pair.texts(), tmp_path / "w", settings=DistillSettings(), cache=cache)
        )
    shard = tmp_path / "c" / "teacher-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"teacher-00000.safetensors: can't be read"):
        TeacherCache(tmp_path / "c").read([0])
    (tmp_path / "c" / "teacher.json").write_text("[]")
    with pytest.raises(DataError, match="can't be read"):
        TeacherCache(tmp_path / "c")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module._save_shard, "__defaults__", (full,))
    with pytest.raises(OutputError, match="No space left"):
        write_cache(pair.parent, ids, CacheSettings(tmp_path / "d", 7))
    assert not list((tmp_path / "d").glob("*.part"))
    assert json.loads((tmp_path / "d" / "teacher.json").read_text())["whole"] is False


def test_language_model_loss_alone_needs_no_parent(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffn_fusion.distillation.distill.OnlineTeacher", None)
    settings = SETTINGS.replaced(objective=Objective(kl=0.0, cosine=0.0, lm=1.0))
    done = distill_child(Training(pair.child, pair.parent, pair.texts(), tmp_path / "w", settings=settings))
    history = done.record["history"]
    assert all(row["loss"] == pytest.approx(row["lm"]) and row["divergence"] == 0 for row in history)
