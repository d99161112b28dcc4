"""What a GPU computes is what a CPU does, up to rounding. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import Made, llama_config, random_ids, write_model

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.measure import analyze
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import final_states
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.distillation.distill import Distilled, distill_child
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.training import Training
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.latency.measure import bench
from ffn_fusion.modeling.load import load_model, realise
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there's no GPU here")
DEVICES = ("cpu", "cuda")
SETTINGS = DistillSettings(batch=4, micro=2, learning_rate=1e-3, warmup=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("parent") / "m", llama_config(num_hidden_layers=7), dtype="F32")


@pytest.fixture(scope="module")
def parent(made: Made) -> Checkpoint:
    return open_folder(made.folder)


@pytest.fixture(scope="module")
def blueprint(parent: Checkpoint) -> Blueprint:
    return Blueprint.identity(parent.spec.parent("p")).apply([2, 3, 4], [(2, 3)])


@pytest.fixture(scope="module")
def child(parent: Checkpoint, blueprint: Blueprint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(parent, blueprint, tmp_path_factory.mktemp("child") / "c", width_multiple=1)


def texts(made: Made, windows: int = 24) -> list[TokenWindows]:
    return [TokenWindows("t", random_ids(made.config, windows, 16).numpy())]


def numbers(value: object, at: str = "") -> dict[str, float]:
    """Every number of a JSON value by its place."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in numbers(part, f"{at}.{name}").items()}
    if isinstance(value, list):
        return {k: v for i, part in enumerate(value) for k, v in numbers(part, f"{at}.{i}").items()}
    return {at: float(value)} if isinstance(value, int | float) else {}


@pytest.mark.parametrize("memory", [None, 400_000_000])
def test_the_evidence(made: Made, parent: Checkpoint, tmp_path: Path, memory: int | None) -> None:
    """With all states on the device, and with few of them."""

    def found(device: str) -> Evidence:
        return analyze(
            parent,
            texts(made),
            AnalysisSettings(scores=("attention", "block"), candidate_share=1, max_run=3, reverse=((1, 3),)),
            device=device,
            memory=memory if device == "cuda" else None,
            workspace=tmp_path / device,
        )

    one, two = (numbers(json.loads(found(device).model_dump_json())) for device in DEVICES)
    assert set(one) == set(two)
    assert len(one) > 100
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=2e-3, abs=2e-5, nan_ok=True), name


def test_kl_and_perplexity(made: Made, parent: Checkpoint, child: Path) -> None:
    models = {"parent": parent, "child": open_folder(child)}
    one, two = (
        numbers([text.model_dump() for text in evaluate(models, texts(made), device=device)]) for device in DEVICES
    )
    assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_repair(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path, solver: str) -> None:
    ids = torch.from_numpy(np.asarray(texts(made)[0].ids_NT))
    finals = []
    for device in DEVICES:
        settings = RepairSettings(solver=solver)  # type: ignore[arg-type]
        repairs = repair_child(
            Repair(parent, blueprint, texts(made), tmp_path / device, settings=settings, device=device)
        )
        repaired = Child(parent, blueprint, 1, repairs)
        finals.append(final_states(Stack(repaired), ids))
    plain = final_states(Stack(Child(parent, blueprint, 1)), ids)
    assert (finals[0] - plain).norm() > 0.01 * plain.norm()
    assert (finals[0] - finals[1]).norm() < 1e-3 * (finals[0] - plain).norm()


def train(made: Made, parent: Checkpoint, child: Path, work: Path, device: str, **more: object) -> Distilled:
    given = {"settings": SETTINGS, **more}
    return distill_child(Training(child, parent, texts(made), work, device=device, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["both", "cached", "lora", "bf16", "checkpointing"])
def test_distillation(made: Made, parent: Checkpoint, child: Path, tmp_path: Path, case: str) -> None:
    """Losses of every step, and weights that lie near one another where they moved."""
    kl = Objective(cosine=0)
    changed = {"lora": {"trained": "lora"}, "bf16": {"bf16": True}, "checkpointing": {"checkpointing": True}}
    settings = SETTINGS.replaced(**changed.get(case, {"objective": kl} if case == "cached" else {}))  # type: ignore[arg-type]
    done = []
    for device in DEVICES:
        cache = CacheSettings(tmp_path / f"{device}-cache", k=8) if case == "cached" else None
        done.append(train(made, parent, child, tmp_path / device, device, settings=settings, cache=cache))
    near = 0.02 if case == "bf16" else 1e-4
    for mine, theirs in zip(*(d.record["history"] for d in done), strict=True):
        assert mine == pytest.approx(theirs, rel=near, abs=near)
    before = open_folder(child)
    moved = 0
    for name in before.tensors:
        start, *ends = (source.read(name).float() for source in (before, *(d.weights for d in done)))
        moved += bool((ends[0] - start).norm() > 0)
        if case != "bf16":  # AdamW makes a whole step of the sign of a gradient that is next to nothing
            assert (ends[0] - ends[1]).norm() <= 0.05 * (ends[0] - start).norm() + 1e-6, name
    assert moved > 10


def test_distillation_that_was_stopped(made: Made, parent: Checkpoint, child: Path, tmp_path: Path) -> None:
    settings = SETTINGS.replaced(save_every=2)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = train(made, parent, child, tmp_path / "whole", "cuda", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(made, parent, child, tmp_path / "stopped", "cuda", settings=settings, progress=stop)
    again = train(made, parent, child, tmp_path / "stopped", "cuda", settings=settings)
    for name in whole.weights.tensors:
        assert torch.allclose(whole.weights.read(name), again.weights.read(name), rtol=1e-3, atol=1e-5), name


def test_speed_is_measured(made: Made, parent: Checkpoint, blueprint: Blueprint) -> None:
    models = {
        "parent": load_model(made.folder, torch.bfloat16, "cuda"),
        "fused": realise(Child(parent, blueprint, 1), torch.bfloat16, "cuda"),
    }
    latency = bench(models, batches=(1, 2), context=8, new_tokens=4, rounds=2)
    assert {timing.model for timing in latency.timings} == set(models)
    assert all(timing.median_s > 0 for timing in latency.timings)
