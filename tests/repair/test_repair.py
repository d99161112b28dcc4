"""Closed-form repair: against lstsq, never worse on held-out windows, in order on the child's own states."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import command, forked, forked_together
from hypothesis import given
from hypothesis import strategies as st
from makers import Made, llama_config, random_ids, write_model
from reference import Reference, Step
from tiny import tiny_model, tiny_text

from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blockwise.sweep import final_states
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import DataError, OutputError, UsageError
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.repair.estimate import RepairEstimate
from ffn_fusion.repair.fit import Windows, take_change
from ffn_fusion.repair.places import places
from ffn_fusion.repair.program import make_program
from ffn_fusion.repair.repair import Repair, repair_child, split_windows
from ffn_fusion.repair.settings import RepairSettings, Solver, Target
from ffn_fusion.repair.walk import Pair, PlaceRepair, walk
from ffn_fusion.solve.choice import Fit
from ffn_fusion.surgery import repairs as repairs_module
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
    return Blueprint.identity(parent.spec.parent("p")).apply([2, 3, 4], [(2, 3)])


def texts(made: Made, windows: int = 40, tokens: int = 16, seed: int = 0) -> list[TokenWindows]:
    return [TokenWindows("t", random_ids(made.config, windows, tokens, seed).numpy())]


def test_places(blueprint: Blueprint) -> None:
    assert [(p.block, p.parent_last, p.why) for p in places(blueprint)] == [
        (2, 3, "fused"),
        (3, 4, "attention dropped"),
    ]
    assert [(p.block, p.why) for p in places(blueprint, 1)][2:] == [(4, "after a change")]
    assert [(p.block, p.why) for p in places(blueprint, 9)][2:] == [(4, "after a change"), (5, "after a change")]
    assert places(Blueprint.identity(blueprint.parent), 3) == ()
    with_attention = places(blueprint, 1, attention=True)
    assert [(p.block, p.parent_last, p.part) for p in with_attention][2:] == [(4, 5, "attention"), (4, 5, "ffn")]


def test_a_run_whose_first_block_keeps_its_attention(parent: Checkpoint) -> None:
    """That attention is a place as well; its state is to be the parent's behind the same attention."""
    kept = Blueprint.identity(parent.spec.parent("p")).apply([3, 4], [(2, 4)])
    found = places(kept, attention=True)
    assert [(p.block, p.parent_last, p.part) for p in found] == [(2, 2, "attention"), (2, 4, "ffn")]
    steps = make_program(kept, found, range(L)).steps
    at = [(s.who, s.block, s.what) for s in steps]
    assert at == [
        ("teacher", 0, "block"),
        ("teacher", 1, "block"),
        ("teacher", 2, "attention"),
        ("child", 2, "attention"),
        ("teacher", 2, "ffn"),
        ("teacher", 3, "block"),
        ("teacher", 4, "block"),
        ("child", 2, "ffn"),
    ]


def found_by(
    teacher: Checkpoint | Child, child: Child, ids: torch.Tensor, fitted: int, settings: RepairSettings, tmp_path: Path
) -> list[PlaceRepair]:
    """The walk alone, in float64."""
    stacks = [Stack(source, dtype=torch.float64) for source in (teacher, child)]
    N, T = ids.shape
    theirs, ours = (
        FileStates(tmp_path / who, N, T, child.spec.hidden_size, torch.float64, stacks[0].device) for who in "tc"
    )
    todo = places(child.blueprint, settings.horizon, attention=settings.attention)
    program = make_program(child.blueprint, todo, range(len(teacher.spec.blocks)))
    windows = Windows([slice(0, fitted)], [slice(fitted, N)])
    stored = torch.float64
    pair = Pair(stacks[0], stacks[1], theirs, ours)
    return list(
        walk(pair, program, ids, windows, settings, dual=lambda _: settings.solver == "dual", stored=lambda _: stored)
    )


def lstsq(h: torch.Tensor, wanted: torch.Tensor, w0: np.ndarray, lam: float, bias: bool = False) -> np.ndarray:
    """The ridge towards w0 by numpy's least squares; with a bias, which has no ridge, as the last column."""
    H, Y = h.flatten(0, 1).numpy(), wanted.flatten(0, 1).numpy()
    ridge = np.sqrt(lam * np.square(H).sum(0).mean()) * np.eye(H.shape[1])
    towards = ridge @ w0.T
    if bias:
        H, ridge = np.c_[H, np.ones(len(H))], np.c_[ridge, np.zeros(len(ridge))]
    best: np.ndarray = np.linalg.lstsq(np.concatenate([H, ridge]), np.concatenate([Y, towards]), rcond=None)[0].T
    return best


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("target", ["parent", "sequential"])
def test_a_place_is_lstsq(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path, solver: Solver, target: Target
) -> None:
    """The first place by hand: the reference's states and activations, and numpy's least squares in float64."""
    lam = 0.03
    ids = random_ids(made.config, 150, 16)
    settings = RepairSettings(horizon=0, lambdas=(lam,), weighting="none", solver=solver)
    teacher = parent if target == "parent" else Child(parent, blueprint.unfused(), 1)
    found = found_by(teacher, Child(parent, blueprint, 1), ids, 120, settings, tmp_path)[0]
    want = Reference(made.config, made.tensors)
    x = want.states(ids, [Step(0, (0,)), Step(1, (1,))])
    attention = {"parent": (2, 3), "sequential": (None, None)}[target]
    y = want.states(ids, [Step(0, (0,)), Step(1, (1,)), Step(attention[0], (2,)), Step(attention[1], (3,))])
    inner = [activations(want, i, x) for i in (2, 3)]
    w0 = np.concatenate([want.weights[f"model.layers.{i}.mlp.down_proj.weight"].numpy() for i in (2, 3)], 1)
    best = lstsq(torch.cat(inner, -1), y - x, w0, lam)
    weight = found.tensors["model.layers.2.mlp.down_proj.weight"].numpy()
    assert np.abs(weight - best).max() / np.abs(best).max() < 1e-4  # normal equations in float32


def activations(want: Reference, i: int, x: torch.Tensor) -> torch.Tensor:
    """What the output projection of FFN i reads."""
    n = want.norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
    gate = want.linear(f"model.layers.{i}.mlp.gate_proj", n)
    return gate * torch.sigmoid(gate) * want.linear(f"model.layers.{i}.mlp.up_proj", n)


def test_an_attention_with_biases_is_lstsq(tmp_path: Path) -> None:
    """A block behind the changed one: its attention reads the child's state, and is to reach the parent's behind it."""
    made = write_model(
        tmp_path / "m", llama_config(num_hidden_layers=4, attention_bias=True, mlp_bias=True), dtype="F64"
    )
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply([1])
    ids = random_ids(made.config, 150, 16)
    settings = RepairSettings(horizon=1, lambdas=(0.03,), weighting="none", attention=True)
    found = found_by(parent, Child(parent, blueprint, 1), ids, 120, settings, tmp_path)
    assert [(f.place.block, f.place.part) for f in found] == [(1, "ffn"), (2, "attention"), (2, "ffn")]
    want = Reference(made.config, made.tensors)
    x0 = want.states(ids, [Step(0, (0,))])
    y0 = want.states(ids, [Step(0, (0,)), Step(1, (1,))])
    weight, bias = "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.bias"
    h = activations(want, 1, x0)
    best = lstsq(h, y0 - x0, want.weights[weight].numpy(), 0.03, bias=True)
    got = np.c_[found[0].tensors[weight].numpy(), found[0].tensors[bias].numpy()]
    assert np.abs(got - best).max() / np.abs(best).max() < 1e-4
    name = "model.layers.2.self_attn.o_proj"
    x1 = x0 + h @ found[0].tensors[weight].T + found[0].tensors[bias]
    w0, b0 = want.weights[f"{name}.weight"], want.weights[f"{name}.bias"]
    out = want.attention(2, x1)
    heads = torch.linalg.solve(w0, (out - b0).mT).mT  # what the projection read: it's square here
    y1 = y0 + want.attention(2, y0)
    best = lstsq(heads, y1 - x1, w0.numpy(), 0.03, bias=True)
    got = np.c_[found[1].tensors[f"{name}.weight"].numpy(), found[1].tensors[f"{name}.bias"].numpy()]
    assert np.abs(got - best).max() / np.abs(best).max() < 1e-3


def test_closer_on_windows_that_were_never_seen(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    repairs = repair_child(Repair(parent, blueprint, texts(made, 200), tmp_path / "r"))
    models = {"parent": parent, "before": Child(parent, blueprint), "after": Child(parent, blueprint, 256, repairs)}
    scores = evaluate(models, texts(made, 20, seed=9))[0].scores
    assert scores["after"].kl < 0.8 * scores["before"].kl
    errors = [place["held_out_error"] for place in repairs.record["places"]]
    assert max(errors) <= 1
    assert min(errors) < 0.9


def test_a_repaired_child_on_disk_is_the_one_in_memory(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    repairs = repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r"))
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
    assert all(name.endswith(("mlp.down_proj.weight", "self_attn.o_proj.weight")) for name in changed)


def test_no_gain_keeps_the_weights(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    """With next to no text there's nothing to learn: what doesn't help on held-out windows isn't taken."""
    settings = RepairSettings(horizon=3, lambdas=(1e-9,))
    repairs = repair_child(Repair(parent, blueprint, texts(made, 5, 8), tmp_path / "r", settings=settings))
    for place in repairs.record["places"]:
        projection = {"ffn": "mlp.down_proj", "attention": "self_attn.o_proj"}[place["part"]]
        name = f"model.layers.{place['block']}.{projection}.weight"
        assert (name in repairs) == (place["reason"] is None)
        assert place["held_out_error"] <= 1
    assert any(place["reason"] for place in repairs.record["places"])


def test_too_little_text(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few to repair"):
        repair_child(Repair(parent, blueprint, texts(made, 3), tmp_path / "r"))
    assert not (tmp_path / "r").exists()


@given(count=st.integers(4, 200), share=st.floats(0.01, 0.9))
def test_every_window_is_fitted_or_decides(count: int, share: float) -> None:
    fitted, held_out = split_windows(count, share)
    assert sorted(fitted + held_out) == list(range(count))
    assert fitted
    assert len(held_out) == min(max(1, round(share * count)), count - 1)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_two_processes_find_what_one_does(tmp_path: Path, solver: str) -> None:
    """They sum their normal equations, or their channels' kernels; the same windows decide."""
    tiny = tiny_model(tmp_path / "parent").folder
    tiny_text(tmp_path / "t.txt")
    fuse = command("fuse", tiny, "-o", tmp_path / "child", "--without-attention", "2-4", "--runs", "2-3")
    assert forked(fuse).wait() == 0
    words = ["repair", tmp_path / "child", "--parent", tiny, "--text", tmp_path / "t.txt"]
    words += ["--tokens", "800", "--context", "32", "--solver", solver, "--json"]
    places = []
    for count, out in ((1, "one"), (2, "two")):
        done, *others = forked_together(count, command(*words, "-o", tmp_path / out))
        assert [process.wait() for process in (done, *others)] == [0] * count, done.stderr
        places.append(json.loads(done.stdout)["places"])
    for one, two in zip(*places, strict=True):
        assert (one["block"], one["lambda"], one["reason"]) == (two["block"], two["lambda"], two["reason"])
        assert two["held_out_error"] == pytest.approx(one["held_out_error"], rel=1e-4)
    one, two = (open_folder(tmp_path / name) for name in ("one", "two"))
    for name in one.tensors:
        assert torch.allclose(one.read(name), two.read(name), rtol=1e-3, atol=1e-4)


def test_deterministic(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    digests = {repair_child(Repair(parent, blueprint, texts(made), tmp_path / k)).digest for k in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path, solver: Solver
) -> None:
    settings = RepairSettings(horizon=2, attention=True, solver=solver)
    want = repair_child(Repair(parent, blueprint, texts(made), tmp_path / "whole", settings=settings))
    steps: list[int] = []

    def stop_at(step: int) -> Callable[[str, int, int], None]:
        def progress(what: str, done: int, total: int) -> None:
            steps.append(done)
            if done == step:
                raise KeyboardInterrupt

        return progress

    folder = tmp_path / "stopped"
    for step in (1, 2, 4, 7, 8):
        with pytest.raises(KeyboardInterrupt):
            repair_child(Repair(parent, blueprint, texts(made), folder, settings=settings), progress=stop_at(step))
    found = repair_child(Repair(parent, blueprint, texts(made), folder, settings=settings), progress=stop_at(-1))
    assert steps == sorted(set(steps))  # no step was done twice
    assert (found.digest, found.record) == (want.digest, want.record)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_other_settings_begin_anew(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    want = repair_child(Repair(parent, blueprint, texts(made), tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        repair_child(
            Repair(parent, blueprint, texts(made), tmp_path / "r", settings=RepairSettings(target="sequential")),
            progress=stop,
        )
    assert repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r")).digest == want.digest


def test_states_that_the_disk_lost_begin_anew(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    want = repair_child(Repair(parent, blueprint, texts(made), tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r"), progress=stop)
    for file in (tmp_path / "r").rglob("states-*.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    assert repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r")).digest == want.digest


def test_independent_places_see_the_unrepaired_child(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    """For comparison only: the first place is the same, those behind it are not."""
    kept, apart = (
        repair_child(Repair(parent, blueprint, texts(made), tmp_path / str(k), settings=RepairSettings(in_order=k)))
        for k in (True, False)
    )
    first, second = sorted(kept)[:2]
    assert torch.equal(kept.rows(first, 0, 32), apart.rows(first, 0, 32))
    assert not torch.equal(kept.rows(second, 0, 32), apart.rows(second, 0, 32))


@pytest.mark.parametrize("biases", [False, True])
def test_the_dual_finds_what_the_primal_does(biases: bool, blueprint: Blueprint, tmp_path: Path) -> None:
    """Held-out errors agree to 1e-6, in order on each one's own repairs; in float64 sums, far closer."""
    config = llama_config(num_hidden_layers=L, attention_bias=biases, mlp_bias=biases)
    made = write_model(tmp_path / "m", config, dtype="F64")
    parent = open_folder(made.folder)
    primal, dual = (
        repair_child(
            Repair(
                parent,
                parent.blueprint().apply([2, 3, 4], [(2, 3)]),
                texts(made),
                tmp_path / solver,
                settings=RepairSettings(solver=solver, horizon=2),
                dtype=torch.float64,
            )
        )
        for solver in ("primal", "dual")
    )
    for one, two in zip(primal.record["places"], dual.record["places"], strict=True):
        assert (one["lambda"], one["reason"]) == (two["lambda"], two["reason"])
        assert two["held_out_error"] == pytest.approx(one["held_out_error"], rel=1e-6)
        assert two["residual"] is None or two["residual"] < 1e-5
    assert set(primal) == set(dual)
    for name, info in primal.items():
        a, b = (found.rows(name, 0, info.shape[0]) for found in (primal, dual))
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 7, 4096])
def test_the_dual_sums_over_any_groups_of_channels(
    channels: int, made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RepairSettings(horizon=0, solver="dual", lambdas=(0.1,))
    ids = random_ids(made.config, 30, 16)
    child = Child(parent, blueprint, 1)
    whole = found_by(parent, child, ids, 24, settings, tmp_path)[0].tensors
    monkeypatch.setattr("ffn_fusion.repair.fit.CHANNELS", channels)
    grouped = found_by(parent, child, ids, 24, settings, tmp_path)[0].tensors
    assert whole
    for name, tensor in whole.items():
        torch.testing.assert_close(grouped[name], tensor, rtol=1e-9, atol=1e-11)


def test_the_smaller_form_is_taken_and_too_small_a_budget_refused(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(memory: int, windows: int = 40, solver: Solver = "auto") -> RepairEstimate:
        settings = RepairSettings(solver=solver)
        repair = Repair(parent, blueprint, texts(made, windows), tmp_path / "r", settings=settings, memory=memory)
        return repair.estimate()

    room = Room(used=0, free=1 << 30, cache=1 << 30, disk=1 << 30)
    monkeypatch.setattr(Room, "here", lambda device, folder, limit: replace(room, limit=limit))
    assert not any(found.dual for found in plan(1 << 30).places)  # 640 tokens
    few = plan(1 << 30, windows=5).places  # 80 tokens
    assert [found.dual for found in few] == [found.width > 80 for found in few]
    assert {found.dual for found in few} == {False, True}
    assert all(found.dual for found in plan(1 << 30, solver="dual").places)
    monkeypatch.setattr("ffn_fusion.repair.estimate.dual_bytes", lambda tokens, F, hidden, dtype: 50 * tokens * tokens)
    monkeypatch.setattr("ffn_fusion.repair.estimate.primal_bytes", lambda F, hidden, dtype: 1000 * F * F)
    with pytest.raises(UsageError, match="too little: this repair needs") as refused:
        plan(1 << 23)
    fitting = int(re.findall(r"at most ([\d,]+)", str(refused.value.hint))[0].replace(",", ""))
    assert plan(1 << 23, windows=fitting // 16).peak_memory <= 1 << 23
    with pytest.raises(UsageError, match="too little: this repair needs"):
        plan(1 << 23, windows=fitting // 16 + 1)
    with pytest.raises(UsageError, match="too little: this repair needs") as refused:
        plan(1 << 14)
    assert "--max-width" in str(refused.value.hint)
    monkeypatch.setattr(Room, "here", lambda device, folder, limit: replace(room, limit=limit, disk=1000))
    with pytest.raises(OutputError, match="states of 640 tokens"):
        plan(1 << 30)
    assert not (tmp_path / "r").exists()


def test_weights_are_rounded_where_they_are_used(made: Made, parent: Checkpoint, blueprint: Blueprint) -> None:
    """What's behind a place is fitted on the state that the stored weights give, not on more precise ones."""
    block = Stack(Child(parent, blueprint, 1)).block(2)
    change = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    before = block.projection("ffn").weight.clone()
    got = take_change(places(blueprint)[0], block, Fit(ridge=0.1, change_DF=change), lambda name: torch.bfloat16)
    assert torch.equal(got["model.layers.2.mlp.down_proj.weight"], (before + change).bfloat16())
    assert torch.equal(block.projection("ffn").weight, (before + change).bfloat16().float())
    assert take_change(places(blueprint)[0], block, Fit(reason="singular"), lambda name: torch.bfloat16) == {}


def test_a_full_disk_is_said_and_the_repair_goes_on_later(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = repair_child(Repair(parent, blueprint, texts(made), tmp_path / "whole"))
    saved = repairs_module.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "layers.3." in next(iter(tensors)):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        saved(tensors, path)

    monkeypatch.setattr(repairs_module, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r"))
    assert not list((tmp_path / "r").glob("*.part"))
    monkeypatch.undo()
    assert repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r")).digest == want.digest
