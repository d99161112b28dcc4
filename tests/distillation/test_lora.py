"""LoRA: only adapters learn, they alone are kept on the way, and merged they're what peft makes of them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from distillation_pair import Pair
from forks import Fork, command, forked, forked_together
from pydantic import ValidationError
from tiny import tiny_model, tiny_text

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.distillation.checkpoints import newest
from ffn_fusion.distillation.depths import matched_depths
from ffn_fusion.distillation.distill import Distilled, distill_child
from ffn_fusion.distillation.estimate import estimate_training
from ffn_fusion.distillation.lora import Merged, bare, with_adapters
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.teacher import OnlineTeacher
from ffn_fusion.distillation.trainer import objective_loss
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import Weights, write_distilled
from ffn_fusion.errors import MissingExtraError
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.processes import silent
from ffn_fusion.surgery.build import build

SETTINGS = DistillSettings(
    trained="lora", lora_rank=4, lora_alpha=8, batch=4, micro=1, learning_rate=1e-2, warmup=0.0, save_every=2
)
WINDOWS = 24
Progress = Callable[[str, int, int], None]


def train(
    pair: Pair, work: Path, settings: DistillSettings = SETTINGS, *, progress: Progress = silent, **more: object
) -> Distilled:
    texts = pair.texts(WINDOWS)
    training = Training(pair.child, pair.parent, texts, work, settings=settings, **more)  # type: ignore[arg-type]
    return distill_child(training, progress=progress)


def same(one: Weights, two: Weights) -> bool:
    return all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)


def matrices(child: Checkpoint, blocks: tuple[int, ...]) -> set[str]:
    """By name: every projection that a child's blocks can have."""
    ends = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + [
        f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    ]
    return {name for k in blocks for end in ends if (name := f"model.layers.{k}.{end}") in child.tensors}


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """Six steps without a stop."""
    return train(pair, tmp_path_factory.mktemp("whole") / "w")


@pytest.mark.parametrize(("trained", "blocks"), [("lora", (0, 1, 2, 3, 4, 5)), ("lora-touched", (1, 2, 3, 4))])
def test_what_changes(pair: Pair, tmp_path: Path, trained: str, blocks: tuple[int, ...]) -> None:
    """Every matrix of the blocks, fused FFNs too, and nothing else; by a matrix of the adapters' rank."""
    done = train(pair, tmp_path / "w", SETTINGS.replaced(trained=trained))  # type: ignore[arg-type]
    child = open_folder(pair.child)
    changed = {n for n in child.tensors if not torch.equal(child.read(n).float(), done.weights.read(n))}
    assert changed == matrices(child, blocks) == set(done.record["trained"])
    assert child.tensors["model.layers.2.mlp.down_proj.weight"].shape[1] > 100  # the fused one
    for name in changed:
        difference = done.weights.read(name).double() - child.read(name).double()
        sizes = torch.linalg.svdvals(difference)
        assert sizes[3] > 1e-6 > 1e-6 * sizes[0] + sizes[4], name
    settings = done.record["settings"]
    assert (settings["trained"], settings["lora_rank"], settings["lora_alpha"]) == (trained, 4, 8)


def test_merged_as_peft_merges(exact: Pair, pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    """And a few rows at a time as all at once, in float32 to the bit: what is scored is what is written."""
    from peft import PeftModel

    in_float64 = train(exact, tmp_path / "w")
    for it, dtype, done in ((pair, torch.float32, whole), (exact, torch.float64, in_float64)):
        wrapped = PeftModel.from_pretrained(load_model(it.child, dtype), done.weights.folder)
        theirs = wrapped.merge_and_unload().state_dict()
        for name, info in done.weights.tensors.items():
            ours = done.weights.read(name)
            assert ours.dtype == dtype
            assert torch.allclose(ours, theirs[name], rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-7), name
            n = info.shape[0]
            parts = [done.weights.rows(name, start, min(start + 7, n)) for start in range(0, n, 7)]
            if dtype == torch.float32:
                assert torch.equal(torch.cat(parts), ours)
            assert torch.allclose(torch.cat(parts), ours, rtol=1e-12, atol=1e-12)


def test_checkpoints_hold_adapters_alone(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    """And the optimiser's two moments of them; the plan says how much."""
    training = Training(pair.child, pair.parent, pair.texts(WINDOWS), tmp_path / "w", SETTINGS)
    child = open_folder(pair.child)
    expected = sum(4 * sum(child.tensors[name].shape) for name in matrices(child, (0, 1, 2, 3, 4, 5)))
    plan = estimate_training(training, timed=False)
    assert (training.parameters, plan.parameters, plan.of) == (expected, expected, child.parameters)
    assert plan.disk_bytes == 3 * 4 * 3 * expected
    everything = estimate_training(replace(training, settings=SETTINGS.replaced(trained="all")), timed=False)
    assert plan.peak_memory == everything.peak_memory - 3 * 4 * (child.parameters - expected)
    assert plan.flops < everything.flops
    folder = whole.weights.folder
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    adapters = (folder / "adapter_model.safetensors").stat().st_size
    assert 4 * expected < adapters < 4 * expected + 16_384
    assert 8 * expected < (folder / "optimizer.pt").stat().st_size < 8 * expected + 65_536


def test_the_objective_sees_through_the_wrapping(exact: Pair) -> None:
    """Adapters that are zero change nothing: value and parts are the child's own, cosine among them."""
    depths, ids = matched_depths(exact.blueprint), torch.from_numpy(exact.texts(3)[0].ids_NT)
    teacher = OnlineTeacher(exact.parent, [d.parent for d in depths], torch.float64, "cpu")
    names = tuple(matrices(open_folder(exact.child), (0, 1, 2, 3, 4, 5)))
    found = []
    for wrap in (False, True):
        model = load_model(exact.child, torch.float64)
        call = with_adapters(model, names, SETTINGS) if wrap else model
        blocks = [d.child for d in depths]
        objective = Objective(kl=1.0, cosine=1.0, lm=0.5)
        loss = objective_loss(bare(call), call, ids, [0, 1, 2], teacher, blocks, objective, torch.float64)
        found.append([float(part) for part in (loss.total.detach(), *loss.parts)])
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert min(found[1]) > 0


def test_it_comes_closer_and_is_a_child_like_any(pair: Pair, tmp_path: Path) -> None:
    settings = SETTINGS.replaced(checkpointing=True, bf16=True, save_every=100)
    done = distill_child(Training(pair.child, pair.parent, pair.texts(WINDOWS), tmp_path / "w", settings=settings))
    child = open_folder(pair.child)
    folder = write_distilled(child, done.weights, done.record, tmp_path / "out", model_card="# x")
    models = {"parent": pair.parent, "before": child, "after": open_folder(folder)}
    scores = evaluate(models, pair.texts(10, seed=5))[0].scores
    assert scores["after"].kl < 0.95 * scores["before"].kl
    ids = torch.from_numpy(pair.texts(1)[0].ids_NT)
    findings = {f.check: f for f in verify(folder, Against(pair.parent, ids, "random"))}
    assert all(f.ok for f in findings.values()), findings
    assert load_model(folder, torch.float32)(ids).logits.isfinite().all()


def test_stopped_at_any_step(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
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
    earlier = Merged(open_folder(pair.child), whole.weights.folder.with_name("checkpoint-4"), SETTINGS, torch.float32)
    assert not same(earlier, whole.weights)  # the check can fail


def slowly(*_: object) -> None:
    """Leave time for a signal before the end."""
    time.sleep(0.3)


@pytest.mark.slow
def test_killed(pair: Pair, whole: Distilled, tmp_path: Path) -> None:
    """SIGKILL while a checkpoint is written or just after; then it's let through."""
    work = tmp_path / "w"
    for step in (2, 4):
        process = Fork(partial(train, pair, work, progress=slowly))
        while process.poll() is None and not (work / f"checkpoint-{step}").exists():
            time.sleep(0.002)
        time.sleep(0.01 * step)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert forked(partial(train, pair, work)).wait() == 0
    saved = newest(work)
    assert saved is not None
    assert same(Merged(open_folder(pair.child), saved.folder, SETTINGS, torch.float32), whole.weights)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    """And one log is written."""
    tiny = tiny_model(tmp_path / "parent").folder
    tiny_text(tmp_path / "t.txt")
    blueprint = Blueprint.identity(open_folder(tiny).spec.parent("p")).apply([2, 3, 4], [(2, 3)])
    child = build(open_folder(tiny), blueprint, tmp_path / "child")
    words = ["distill", child, "--parent", tiny, "--text", tmp_path / "t.txt", "--json", "--tokens", "640"]
    words += ["--context", "32", "--batch", "4", "--trained", "lora", "--lora-rank", "4", "--track", "tensorboard"]
    losses = []
    for count, out in ((1, "one"), (2, "two")):
        done, *_ = forked_together(count, command(*words, "-o", tmp_path / out))
        assert done.wait() == 0, done.stderr
        losses.append([row["loss"] for row in json.loads(done.stdout)["history"]])
        assert len(list((tmp_path / f"{out}.logs").glob("*/events.out.*"))) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = (open_folder(tmp_path / name) for name in ("one", "two"))
    for name in one.tensors:
        assert torch.allclose(one.read(name), two.read(name), rtol=1e-4, atol=1e-5)


def test_mistakes_are_one_line(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="lora_rank"):
        SETTINGS.replaced(lora_rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="LoRA needs peft"):
        train(pair, tmp_path / "w")
    assert not (tmp_path / "w").exists()
