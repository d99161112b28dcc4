"""The input side of a repair: against lstsq, folded exactly, never worse, resumed to the same bits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from families.cases import OWN_FORM, write_family
from makers import Blocks, Made, nas_config, random_ids, write_model
from torch import Tensor

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.modeling.load import load_model, realise
from ffn_fusion.repair.fit import SLOT, Windows
from ffn_fusion.repair.inputs import channels_to_map, fold_input, solve_input
from ffn_fusion.repair.places import places
from ffn_fusion.repair.program import make_program
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

BLOCKS: Blocks = [(2, 48), (2, 20), (2, 48), (4, 30), (2, 48), (2, 48)]
INPUTS = RepairSettings(inputs=True, lambdas=(0.1, 0.01))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("parent") / "m", nas_config(BLOCKS), BLOCKS, dtype="F64")


@pytest.fixture(scope="module")
def parent(made: Made) -> Checkpoint:
    return open_folder(made.folder)


@pytest.fixture(scope="module")
def blueprint(parent: Checkpoint) -> Blueprint:
    """A run that keeps its first attention, and a block that only lost its own."""
    return parent.blueprint().apply([2, 4], [(1, 2)])


def texts(made: Made, windows: int = 30) -> list[TokenWindows]:
    return [TokenWindows("t", random_ids(made.config, windows, 16).numpy())]


def test_which_ffns(parent: Checkpoint, blueprint: Blueprint) -> None:
    assert channels_to_map(blueprint, parent.spec) == {1: {1: slice(0, 20), 2: slice(20, 68)}, 3: {4: slice(0, 48)}}
    wide = parent.blueprint().side_by_side(1, 2)
    shared = parent.blueprint().apply([2], [(1, 2)], norm="last")
    assert channels_to_map(wide, parent.spec) == channels_to_map(shared, parent.spec) == {}


def test_the_childs_input_is_known_when_the_parents_is_read(parent: Checkpoint, blueprint: Blueprint) -> None:
    found = places(blueprint, attention=True)
    mapped = channels_to_map(blueprint, parent.spec)
    steps = make_program(blueprint, found, range(len(BLOCKS)), mapped=mapped).steps
    assert [(s.who, s.block, s.what, s.source) for s in steps if s.block in (1, 2) and s.who == "child"][:4] == [
        ("child", 1, "attention", None),
        ("child", 1, "input", 1),
        ("child", 1, "input", 2),
        ("child", 1, "ffn", None),
    ]
    for at, step in enumerate(steps):
        if step.what == "input":
            before = [s for s in steps[:at] if s.who == "teacher"][-1]
            after = next(s for s in steps[at:] if s.who == "teacher")
            assert (before.what, after.what, before.block, after.block) == (
                "attention",
                "ffn",
                step.source,
                step.source,
            )


@torch.inference_mode()
def test_a_map_is_lstsq(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    """Of random states, without a ridge."""
    block = Stack(Child(parent, blueprint, 1), dtype=torch.float64).block(1)
    N, T, D = 12, 16, 32
    states = []
    for who in "ct":
        kept = FileStates(tmp_path / who, N, T, D, torch.float64, torch.device("cpu"))
        kept.write(SLOT, slice(0, N), torch.randn(N, T, D, dtype=torch.float64))
        kept.turn()
        states.append(kept)
    settings = RepairSettings(lambdas=(0.0,))
    fit = solve_input(block, *states, Windows([slice(0, 8)], [slice(8, 12)]), settings)
    x, z = (block.normed(kept.read(SLOT, slice(0, N))).flatten(0, 1) for kept in states)
    assert fit.change_DF is not None  # independent states: anything is nearer than the other state itself
    want = torch.linalg.lstsq(x, z).solution.mT
    assert (torch.eye(D) + fit.change_DF - want).abs().max() < 1e-8 * want.abs().max()


@pytest.mark.parametrize("name", ["llama", "phi3, window", "gpt2", "smollm3"])
@torch.inference_mode()
def test_folded_maps_are_maps_of_the_input(name: str, made: Made, tmp_path: Path) -> None:
    """Of the FFNs of a run, each with its own: stacked matrices, and those stored the other way round."""
    folder = made.folder
    if name != "llama":
        write_family(folder := tmp_path / "m", OWN_FORM[name])
    parent = open_folder(folder)
    blueprint = parent.blueprint().apply([1, 2], [(1, 2)])
    block = Stack(Child(parent, blueprint, 1), dtype=torch.float64).block(1)
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    maps = torch.randn(2, 32, 32, dtype=torch.float64) * 0.2
    normed, read = block.normed, [maps[k] for k in range(2)]
    widths = [parent.spec.blocks[i].ffn_width for i in (1, 2)]
    ends = [0, widths[0], sum(widths)]

    def channels(k: int) -> slice:
        return slice(ends[k], ends[k + 1])

    before = [_inner(block, normed(x) + normed(x) @ read[k].mT)[..., channels(k)] for k in range(2)]
    for k in range(2):
        fold_input(block, channels(k), read[k], lambda name: torch.float64)
    after = _inner(block, normed(x))
    assert (after - torch.cat(before, -1)).abs().max() < 1e-12 * after.abs().max()


def _inner(block: object, normed: Tensor) -> Tensor:
    """What the matrices that read the state give, before any activation, of gate and up together."""
    found = []
    for _, tensor, weight in block.into("ffn"):  # type: ignore[attr-defined]
        matrices = [weight.T] if tensor.axis == 1 else list(weight.chunk(tensor.stacked))
        found += [normed @ matrix.mT for matrix in matrices]
    return torch.stack(found).movedim(0, -2)


def test_it_helps_and_is_built(made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path) -> None:
    """The child on disk is the one in memory, padded or not; no input is further away than it was."""
    repairs = repair_child(Repair(parent, blueprint, texts(made), tmp_path / "r", INPUTS, dtype=torch.float64))
    inputs = {row["block"]: row["inputs"] for row in repairs.record["places"] if "inputs" in row}
    assert inputs
    assert all(error <= 1 for errors in inputs.values() for error in errors.values())
    assert {"model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"} <= set(repairs)
    ids = random_ids(made.config, 2, 9, seed=1)
    memory = realise(Child(parent, blueprint, 1, repairs), torch.float64)
    build(parent, blueprint, tmp_path / "child", width_multiple=32, repairs=repairs)
    with torch.no_grad():
        have, want = load_model(tmp_path / "child", torch.float64)(ids).logits, memory(ids).logits
    assert (have - want).abs().max() < 1e-10 * want.abs().max()


def test_killed_anywhere_it_goes_on_to_the_same_bits(
    made: Made, parent: Checkpoint, blueprint: Blueprint, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def repair(folder: Path, die_at: int = -1) -> bytes:
        def progress(what: str, done: int, total: int) -> None:
            if done == die_at:
                raise Killed

        repairs = repair_child(Repair(parent, blueprint, texts(made), folder, INPUTS), progress=progress)
        return b"".join(repairs.read(name).numpy().tobytes() for name in sorted(repairs)) + os.fsencode(repairs.digest)

    want = repair(tmp_path / "whole")
    steps = len(Repair(parent, blueprint, texts(made), tmp_path / "n", INPUTS).program.steps)
    for at in range(1, steps, 2):
        with pytest.raises(Killed):
            repair(tmp_path / str(at), at)
        assert repair(tmp_path / str(at)) == want, at
