"""Timing in transformers: a whole run on tiny models, memory, the machine's limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.errors import UsageError
from ffn_fusion.latency import roofline as limits
from ffn_fusion.latency.interleave import Workload
from ffn_fusion.latency.measure import bench
from ffn_fusion.latency.memory import peak_beyond, weight_memory
from ffn_fusion.latency.transformers_runner import TransformersRunner
from ffn_fusion.modeling.load import load_model, realise
from ffn_fusion.surgery.child import Child

CPU = torch.device("cpu")


@pytest.fixture
def parent(tmp_path: Path) -> Checkpoint:
    return open_folder(tiny_model(tmp_path / "parent").folder)


def test_a_parent_and_its_child(parent: Checkpoint) -> None:
    child = Child(parent, Blueprint.identity(parent.spec.parent("p")).apply([2, 3, 4], [(2, 3)]))
    models = {"parent": load_model(parent.folder, torch.float32), "child": realise(child, torch.float32)}
    latency = bench(models, batches=(1, 2), context=(4, 6), new_tokens=2, rounds=2)
    assert latency.settings == ((1, 4), (2, 4), (1, 6), (2, 6))
    assert latency.roofline is not None
    for timing in latency.timings:
        assert timing.rounds == 2
        assert 0 < timing.p10_s <= timing.median_s <= timing.p90_s
        assert timing.limit_share is not None
        assert timing.limit_share > 0
    half = latency.get("parent", "decode", 2, 6).work, latency.get("child", "decode", 2, 6).work
    assert half[1].kv_bytes == half[0].kv_bytes / 2  # three of six attentions are gone


def test_a_runner_decodes_greedily_behind_the_prompt(parent: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """It feeds what ``generate`` would say: the timed steps are those of real decoding."""
    model = load_model(parent.folder, torch.float32)
    runner = TransformersRunner(model, parent.spec.vocab_size, seed=3)
    fed: list[torch.Tensor] = []
    step = runner._next
    monkeypatch.setattr(runner, "_next", lambda ids, cache: (fed.append(ids), step(ids, cache))[1])
    runner.run(Workload(2, 5, 3))
    prompt, *steps = fed
    assert prompt.shape == (2, 5)
    with torch.inference_mode():
        said = model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(torch.cat(steps, 1), said[:, 5:])


def test_no_memory_is_one_line(parent: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TransformersRunner(load_model(parent.folder, torch.float32), 61)

    def full(*words: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "_timed", full)
    with pytest.raises(UsageError, match="batch 4 of 1,024 tokens"):
        runner.run(Workload(4, 1024, 1))


def test_peak_of_memory() -> None:
    size = 1 << 26
    found = peak_beyond(lambda: torch.ones(size // 4).sum(), CPU)
    if found is None:
        pytest.skip("this system doesn't tell")
    assert size * 0.9 < found < size * 1.5
    assert weight_memory(torch.nn.Linear(8, 4)) == 4 * (8 * 4 + 4)


def test_the_roofline_takes_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_READ_BYTES", {"cpu": 1 << 22})
    monkeypatch.setattr(limits, "cache_bytes", lambda device: 1 << 20)
    found = limits.measure_roofline("cpu", torch.float32, threads=1)
    assert 1e7 < found.bytes_per_second < 1e13
    assert 1e7 < found.flops_per_second < 1e15
    slower = found.model_copy(update={"bytes_per_second": 1.0})
    assert limits.better(slower, found) == found
