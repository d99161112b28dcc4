"""FSDP2 on two processes is what one process does, wherever it's stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import sharded_cases
import torch
from accelerate.commands.config.config_args import load_config_from_file
from forks import Fork, Work, command, fork_together, forked, forked_together
from makers import llama_config, random_ids, write_model
from sharded_cases import CASES, STEPS, carry_out, pair_of, train
from tiny import tiny_model, tiny_text

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.distillation.checkpoints import newest
from ffn_fusion.distillation.sharding import check_sharding, launched_sharded
from ffn_fusion.errors import UsageError
from ffn_fusion.modeling.load import load_model
from ffn_fusion.surgery.build import build

CONFIGURATIONS = Path(__file__).parents[2] / "recipes" / "accelerate"
PATHS = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


def cases(what: str, pairs: Path, out: Path) -> Work:
    return partial(carry_out, what, pairs, out)


def check_ended(processes: list[Fork]) -> None:
    for process in processes:
        assert process.wait() == 0, process.stderr


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parents of five blocks in float32, tied and untied, and children with two fused FFNs."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("tied", "untied"):
        folder = root / name
        config = llama_config(num_hidden_layers=5, tie_word_embeddings=name == "tied")
        write_model(folder / "parent", config, dtype="F32")
        parent = open_folder(folder / "parent")
        blueprint = Blueprint.identity(parent.spec.parent("p")).apply([2, 3], [(2, 3)])
        build(parent, blueprint, folder / "child", width_multiple=1)
        torch.save(random_ids(config, 4 * STEPS, 16, 0), folder / "ids.pt")
    return root


@pytest.fixture(scope="module")
def two(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on two processes: weights and optimiser in shards."""
    out = tmp_path_factory.mktemp("two")
    check_ended(forked_together(2, cases("compare", pairs, out)))
    return out


def weights(work: Path, step: int = STEPS) -> Checkpoint:
    saved = newest(work)
    assert saved is not None
    assert saved.step == step
    return open_folder(saved.folder)


def same(one: Checkpoint, two: Checkpoint) -> bool:
    assert set(one.tensors) == set(two.tensors)
    return all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_one_process(pairs: Path, two: Path, tmp_path: Path, case: str) -> None:
    """The same global batch: every loss, and the weights at the end."""
    one = train(pairs / pair_of(case), tmp_path / case, CASES[case], cached=case == "cached")
    found = json.loads((two / f"{case}.json").read_text())
    assert len(found) == STEPS
    near, apart = (0.03, 0.02) if case == "bf16" else (1e-4, 1e-5)
    for mine, theirs in zip(one.record["history"], found, strict=True):
        assert mine == pytest.approx(theirs, abs=near)
    shards = weights(two / case)
    assert set(shards.tensors) == set(one.weights.tensors)
    before = open_folder(pairs / pair_of(case) / "child")
    for name in shards.tensors:
        assert torch.allclose(one.weights.read(name), shards.read(name), rtol=0, atol=apart), name
        if name not in one.record["trained"]:
            assert torch.equal(before.read(name), shards.read(name))
    assert not same(before, shards)


@pytest.mark.slow
def test_what_is_left_is_a_model_in_shards_of_an_optimiser(pairs: Path, two: Path) -> None:
    saved = newest(two / "tied")
    assert saved is not None
    assert {"optimizer-0-of-2.pt", "optimizer-1-of-2.pt"} <= {path.name for path in saved.folder.iterdir()}
    halves = [torch.load(saved.folder / f"optimizer-{rank}-of-2.pt", weights_only=True) for rank in (0, 1)]
    counts = [sum(row["exp_avg"].numel() for row in half["state"].values()) for half in halves]
    assert sum(counts) == open_folder(saved.folder).parameters
    assert abs(counts[0] - counts[1]) < 0.02 * sum(counts)
    model = load_model(saved.folder, torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = load_model(pairs / "tied" / "child", torch.float32)
    ids = torch.load(pairs / "tied" / "ids.pt")[:2]
    assert (model(ids).logits - before(ids).logits).abs().max() > 1e-3


@pytest.mark.slow
def test_stopped_and_out_of_room(pairs: Path, two: Path, tmp_path: Path) -> None:
    """Between two checkpoints, while the first writes weights, while the second writes its part: to the same bits."""
    check_ended(forked_together(2, cases("stop", pairs, tmp_path)))
    assert "checkpoint-4: can't be written ([Errno 27] File too large" in (tmp_path / "first.txt").read_text()
    assert "No space left" in (tmp_path / "second.txt").read_text()
    for name in ("first", "second"):
        assert "it continues from step 2" in (tmp_path / f"{name}.txt").read_text()
    for name in ("stopped", "first", "second"):
        assert same(weights(tmp_path / name, 6), weights(two / "short", 6)), name


@pytest.mark.slow
def test_killed(pairs: Path, two: Path, tmp_path: Path) -> None:
    """SIGKILL of all processes, while the second checkpoint is written or just after."""
    work = tmp_path / "w"
    processes = fork_together(2, cases("slowly", pairs, work))
    while processes[0].poll() is None and not (work / "checkpoint-4").exists():
        time.sleep(0.002)
    for sent in (signal.SIGSTOP, signal.SIGKILL):  # none sees another one end
        for process in processes:
            os.kill(process.pid, sent)
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
    saved = newest(work)
    assert saved is not None
    assert saved.step in (2, 4)
    check_ended(forked_together(2, cases("resume", pairs, work)))
    assert same(weights(work, 6), weights(two / "short", 6))


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_all(pairs: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    done, _ = forked_together(2, cases("diverge", pairs, work))
    assert "TrainingError: the loss or its gradient isn't finite at step 3" in done.stderr
    saved = newest(work)
    assert saved is not None
    assert saved.step == 2
    assert open_folder(saved.folder).read("model.norm.weight").isfinite().all()


@pytest.mark.slow
def test_the_command_line_under_accelerate_launch(pairs: Path, tmp_path: Path) -> None:
    """The configuration that ships, on two processes; then a batch that three can't share leaves all as it is."""
    tiny = tiny_model(tmp_path / "parent").folder
    installed = Path(sys.executable).with_name("ffn-fusion")
    tiny_text(tmp_path / "t.txt")
    fuse = command("fuse", tiny, "-o", tmp_path / "child", "--without-attention", "2-4", "--runs", "2-3")
    assert forked(fuse).wait() == 0
    words = ["distill", tmp_path / "child", "--parent", tiny, "--text", tmp_path / "t.txt", "--json", "--tokens", "320"]
    words += ["--context", "32", "--batch", "4", "--save-every", "1", "-o", tmp_path / "out"]
    start = [installed.with_name("accelerate"), "launch", "--config_file", CONFIGURATIONS / "fsdp2.yaml"]
    start += ["--num_processes", "2", "--no_python", installed]
    done = subprocess.run([*start, *words], env=ENVIRONMENT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    record = json.loads(done.stdout)
    assert record["settings"]["shard"]
    assert not mismatches(tmp_path / "out")
    assert load_model(tmp_path / "out", torch.float32)(torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all()

    work = tmp_path / ".other.distillation"
    (work / "checkpoint-1").mkdir(parents=True)
    words[-1] = tmp_path / "other"
    processes = forked_together(3, command(*words, "--shard"))
    assert [process.wait() for process in processes] == [2, 0, 0]
    said = "".join(process.stderr for process in processes)
    assert said.count("error: a batch of 4 windows can't be shared evenly: 1 at a time on each of 3 processes") == 1
    assert "Traceback" not in said
    assert (work / "checkpoint-1").is_dir()


@pytest.mark.slow
def test_deepspeed(pairs: Path, two: Path, tmp_path: Path) -> None:
    """ZeRO-3 as the configuration has it: losses, the weights at the end, and stopped in between."""
    pytest.importorskip("deepspeed")
    start = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file"]
    start += [str(CONFIGURATIONS / "deepspeed_zero3.yaml"), "--num_processes", "2", sharded_cases.__file__]
    cpu = {**ENVIRONMENT, "DS_ACCELERATOR": "cpu"}
    root = CONFIGURATIONS.parents[1]
    done = subprocess.run([*start, "deepspeed", pairs, tmp_path], env=cpu, cwd=root, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    for case in ("untied", "tied"):
        found = json.loads((tmp_path / f"{case}.json").read_text())
        losses = [row["loss"] for row in json.loads((two / f"{case}.json").read_text())]
        assert [row["loss"] for row in found] == pytest.approx(losses, abs=1e-4)
        one, other = weights(two / case), weights(tmp_path / case)
        assert set(one.tensors) == set(other.tensors)
        for name in one.tensors:
            assert torch.allclose(one.read(name), other.read(name), rtol=0, atol=1e-5), name
    assert same(weights(tmp_path / "stopped", 6), weights(tmp_path / "whole", 6))


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_the_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    if path.stem == "deepspeed_zero3":
        named = config.deepspeed_config["deepspeed_config_file"]
        assert json.loads((CONFIGURATIONS.parents[1] / named).read_text())["zero_optimization"]["stage"] == 3
    else:
        assert config.distributed_type == "FSDP"
        assert config.fsdp_config["fsdp_version"] == 2
    assert config.num_processes == 8 * config.num_machines


def test_fsdp_as_accelerate_launch_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched_sharded()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP 1"):
        launched_sharded()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launched_sharded()
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(UsageError, match="fsdp_offload_params"):
        launched_sharded()


def test_adapters_are_not_sharded(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adapters"):
        train(pairs / "tied", tmp_path / "w", CASES["tied"].replaced(shard=True, trained="lora"))
    assert not (tmp_path / "w").exists()


def test_deepspeed_shards_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="asks for DeepSpeed"):
        check_sharding(2)


def test_one_process_has_nobody_to_share_with(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="single process") as caught:
        train(pairs / "tied", tmp_path / "w", CASES["tied"].replaced(shard=True))
    assert "torchrun" in caught.value.hint
    assert not (tmp_path / "w").exists()
