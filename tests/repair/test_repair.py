"""Closed-form repair: against lstsq, never worse on held-out windows, in order on the child's own states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import Made, llama_config, random_ids, write_model
from reference import Reference, Step
from tiny import tiny_model, tiny_text

from ffn_fusion.blockwise import Stack, final_states
from ffn_fusion.blueprint import Blueprint, apply
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.data import TokenWindows
from ffn_fusion.errors import DataError
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.repair.places import places
from ffn_fusion.repair.repair import repair_child, split_windows
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.repair.walk import walk
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

L = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("parent") / "m", llama_config(num_hidden_layers=L), dtype="F64")


@pytest.fixture(scope="module")
def parent(made: Made) -> Checkpoint:
    return open_folder(made.folder)


@pytest.fixture(scope="module")
def blueprint(parent: Checkpoint) -> Blueprint:
    """Attentions 2-4 dropped, FFNs 2-3 fused, 4 left alone; 5 and 6 are untouched."""
    return apply(Blueprint.identity(parent.spec.parent("p")), [2, 3, 4], [(2, 3)])


def texts(made: Made, windows: int = 40, tokens: int = 16, seed: int = 0) -> list[TokenWindows]:
    return [TokenWindows("t", random_ids(made.config, windows, tokens, seed).numpy())]


def test_places(blueprint: Blueprint) -> None:
    assert [(p.block, p.parent_last, p.why) for p in places(blueprint)] == [
        (2, 3, "fused"),
        (3, 4, "attention dropped"),
    ]
    assert [(p.block, p.why) for p in places(blueprint, 1)][2:] == [(4, "behind")]
    assert [(p.block, p.why) for p in places(blueprint, 9)][2:] == [(4, "behind"), (5, "behind")]
    assert places(Blueprint.identity(blueprint.parent), 3) == ()


def test_a_place_is_lstsq(made: Made, parent: Checkpoint, blueprint: Blueprint) -> None:
    """The first place by hand: the reference's states and activations, and numpy's least squares in float64."""
    lam = 0.03
    ids = random_ids(made.config, 150, 16)
    settings = RepairSettings(horizon=0, lambdas=(lam,), weighting="none", held_out=0.2)
    stacks = [Stack(source, dtype=torch.float64) for source in (parent, Child(parent, blueprint, 1))]
    found = next(walk(*stacks, blueprint, ids, 120, settings))
    assert found.weight is not None
    want = Reference(made.config, made.tensors)
    x = want.states(ids, [Step(0, (0,)), Step(1, (1,))])
    y = want.states(ids, [Step(i, (i,)) for i in range(4)])
    inner = []
    for i in (2, 3):
        n = want.norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
        gate = want.linear(f"model.layers.{i}.mlp.gate_proj", n)
        inner.append(gate * torch.sigmoid(gate) * want.linear(f"model.layers.{i}.mlp.up_proj", n))
    h = torch.cat(inner, -1).flatten(0, 1).numpy()
    w0 = np.concatenate([want.weights[f"model.layers.{i}.mlp.down_proj.weight"].numpy() for i in (2, 3)], 1)
    ridge = np.sqrt(lam * np.square(h).sum(0).mean())
    a = np.concatenate([h, ridge * np.eye(h.shape[1])])
    b = np.concatenate([(y - x).flatten(0, 1).numpy(), ridge * w0.T])
    best = np.linalg.lstsq(a, b, rcond=None)[0].T
    assert np.abs(found.weight.numpy() - best).max() / np.abs(best).max() < 1e-4  # normal equations in float32


def test_closer_on_windows_that_were_never_seen(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    repairs = repair_child(parent, blueprint, texts(made, 200), tmp_path / "r")
    models = {"parent": parent, "before": Child(parent, blueprint), "after": Child(parent, blueprint, 256, repairs)}
    scores = evaluate(models, texts(made, 20, seed=9))[0].scores
    assert scores["after"].kl < 0.8 * scores["before"].kl
    errors = [place["held_out_error"] for place in repairs.record["places"]]
    assert max(errors) <= 1
    assert min(errors) < 0.9


def test_a_repaired_child_on_disk_is_the_one_in_memory(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    repairs = repair_child(parent, blueprint, texts(made), tmp_path / "r")
    ids = random_ids(made.config, 2, 8)
    for multiple in (1, 256):
        folder = build(parent, blueprint, tmp_path / str(multiple), width_multiple=multiple, repairs=repairs)
        assert not mismatches(folder)
        virtual, built = Child(parent, blueprint, multiple, repairs), open_folder(folder)
        assert all(torch.equal(virtual.read(name), built.read(name)) for name in virtual.tensors)
        states = [final_states(Stack(source, dtype=torch.float64), ids) for source in (virtual, built)]
        assert torch.equal(*states)
        assert json.loads((folder / "repairs.json").read_text()) == repairs.record
    changed = [n for n in virtual.tensors if not torch.equal(virtual.read(n), Child(parent, blueprint).read(n))]
    assert set(changed) == set(repairs)
    assert all(name.endswith("mlp.down_proj.weight") for name in changed)


def test_no_gain_keeps_the_weights(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    """With next to no text there's nothing to learn: what doesn't help on held-out windows isn't taken."""
    settings = RepairSettings(horizon=3, lambdas=(1e-9,))
    repairs = repair_child(parent, blueprint, texts(made, 5, 8), tmp_path / "r", settings=settings)
    for place in repairs.record["places"]:
        name = f"model.layers.{place['block']}.mlp.down_proj.weight"
        assert (name in repairs) == (place["reason"] is None)
        assert place["held_out_error"] <= 1
    assert any(place["reason"] for place in repairs.record["places"])


def test_too_little_text(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few to repair"):
        repair_child(parent, blueprint, texts(made, 3), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@given(count=st.integers(4, 200), share=st.floats(0.01, 0.9))
def test_every_window_is_fitted_or_decides(count: int, share: float) -> None:
    fitted, held_out = split_windows(count, share)
    assert sorted(fitted + held_out) == list(range(count))
    assert fitted
    assert len(held_out) == min(max(1, round(share * count)), count - 1)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    """They sum their normal equations; the same windows decide."""
    tiny = tiny_model(tmp_path / "parent").folder
    tiny_text(tmp_path / "t.txt")
    command = Path(sys.executable).with_name("ffn-fusion")
    words = [command, "fuse", tiny, "-o", tmp_path / "child", "--drop-attention", "2-4", "--runs", "2-3"]
    subprocess.run(words, check=True, capture_output=True)
    words = [command, "repair", tmp_path / "child", "--parent", tiny, "--text", tmp_path / "t.txt"]
    words += ["--tokens", "800", "--context", "32", "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    places = []
    for start, out in (([], "one"), (launch, "two")):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*start, *words, "-o", tmp_path / out], check=True, capture_output=True, env=environment)
        places.append(json.loads(done.stdout)["places"])
    for one, two in zip(*places, strict=True):
        assert (one["block"], one["lambda"], one["reason"]) == (two["block"], two["lambda"], two["reason"])
        assert two["held_out_error"] == pytest.approx(one["held_out_error"], rel=1e-4)
    one, two = (open_folder(tmp_path / name) for name in ("one", "two"))
    for name in one.tensors:
        assert torch.allclose(one.read(name), two.read(name), rtol=1e-3, atol=1e-4)


def test_deterministic(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    digests = {repair_child(parent, blueprint, texts(made), tmp_path / k).digest for k in "ab"}
    assert len(digests) == 1
