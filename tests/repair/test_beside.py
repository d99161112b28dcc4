"""Blocks side by side in the sweep: plain, and repaired as by the regression on the other windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_hand import parents, primal
from killed import OnProgress, States, assert_same_after_kills
from makers import Blocks, Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ffn_fusion.blockwise.edits import Edit, InParallel, SideBySide
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blockwise.sweep import final_states, sweep
from ffn_fusion.blockwise.work import count_work
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.repair import beside, candidate
from ffn_fusion.repair.beside import RepairedSideBySide
from ffn_fusion.repair.candidate import Workbench
from ffn_fusion.solve import cross_fit
from ffn_fusion.solve.cross_fit import CrossFit
from ffn_fusion.surgery.child import Child

T, N = 8, 13
BLOCKS: Blocks = [(2, 20), (4, 12), (2, None), (1, 20), (None, 8), (2, 20)]
RUNS = [(0, 1), (1, 3), (3, 5)]
RIDGE = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("parent") / "m"
    return write_model(folder, nas_config(BLOCKS, mlp_bias=True), BLOCKS, dtype="F64")


@pytest.fixture(scope="module")
def ids(made: Made) -> Tensor:
    return random_ids(made.config, N, T)


def stack_of(made: Made, dtype: torch.dtype = torch.float64, resident: bool = True) -> Stack:
    return Stack(open_folder(made.folder), dtype=dtype, resident=resident)


def plain(stack: Stack) -> dict[str, Edit]:
    return {f"{first}-{last}": SideBySide(first, last, stack) for first, last in RUNS}


def repaired(stack: Stack, most: int = 2048) -> dict[str, Edit]:
    bench = Workbench(stack.spec, T, N, stack.dtype, most)
    return {f"{first}-{last}": RepairedSideBySide(first, last, stack, bench=bench) for first, last in RUNS}


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("resident", [True, False])
def test_it_is_the_child_with_one_wide_block(made: Made, ids: Tensor, resident: bool) -> None:
    stack = stack_of(made, resident=resident)
    swept = sweep(stack, ids, plain(stack), rows=3 * T)
    parent = open_folder(made.folder)
    for first, last in RUNS:
        child = Child(parent, parent.blueprint().side_by_side(first, last), 1)
        want = final_states(Stack(child, dtype=torch.float64), ids)
        assert relative(swept.state(f"{first}-{last}"), want) < 1e-10


def test_each_ffn_after_its_own_attention(made: Made, ids: Tensor) -> None:
    """The paper's form: X + sum_j (block_j(X) - X)."""
    stack, want = stack_of(made), Reference(made.config, made.tensors)
    swept = sweep(stack, ids, {"1-3": InParallel(1, 3)})
    x = want.states(ids, identity_steps(1))
    total = x
    for j in (1, 2, 3):
        attended = x + want.attention(j, x)
        total = total + attended - x
        if BLOCKS[j][1] is not None:
            total = total + want.ffn(j, want.norm(attended, f"model.layers.{j}.post_attention_layernorm.weight"))
    for j in (4, 5):
        attended = total + want.attention(j, total)
        total = attended + want.ffn(j, want.norm(attended, f"model.layers.{j}.post_attention_layernorm.weight"))
    assert relative(swept.state("1-3"), total) < 1e-6  # rotary tables are float32


def test_repaired_as_by_the_regression_on_the_other_windows(
    made: Made, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "cross_fit", lambda folds, width: cross_fit._fit(folds, width, RIDGE, 1.0))
    stack = stack_of(made)
    seen = parents(stack, ids)
    after = [x for x, _ in seen[1:]] + [final_states(stack, ids)]
    unrepaired = sweep(stack, ids, plain(stack))
    for rows in (4096, T, 3 * T):
        swept = sweep(stack, ids, repaired(stack), rows=rows)
        for first, last in RUNS:
            x, _ = seen[first]
            blocks = [stack.block(j) for j in range(first, last + 1)]
            with torch.inference_mode():
                attended = x + sum(block.attention(x) for block in blocks)
                parts = [block.inner_and_outer("ffn", attended) for block in blocks if block.has_ffn]
                inner, total = torch.cat([part for part, _ in parts], -1), attended + sum(outer for _, outer in parts)
                state = primal(inner, total, after[last], RIDGE)
                for j in range(last + 1, len(BLOCKS)):
                    state = state + stack.block(j).contributions(state).block
            moved = (state - unrepaired.state(f"{first}-{last}")).abs().max()
            assert (swept.state(f"{first}-{last}") - state).abs().max() < 1e-8 * moved, (first, rows)


def test_one_window_stays_as_it_is(made: Made, ids: Tensor) -> None:
    stack = stack_of(made)
    have, want = (sweep(stack, ids[:1], edits) for edits in (repaired(stack), plain(stack)))
    assert all(torch.equal(have.state(name), want.state(name)) for name in want.kept)


def test_killed_at_every_block_it_goes_on_to_the_same_bits(made: Made, ids: Tensor, tmp_path: Path) -> None:
    def run(folder: Path, on_progress: OnProgress) -> States:
        stack = stack_of(made, torch.float32, resident=False)
        states = FileStates(folder, N, T, stack.spec.hidden_size, torch.float32, stack.device)
        edits = repaired(stack) | {f"plain {name}": edit for name, edit in plain(stack).items()}
        journal = Journal(folder / "journal", "key")
        swept = sweep(stack, ids, edits, states=states, journal=journal, rows=3 * T, on_progress=on_progress)
        return {name: swept.state(name) for name in swept.kept}

    assert_same_after_kills(run, tmp_path, range(1, 60, 6))


@pytest.mark.parametrize("make", [plain, repaired])
def test_as_much_work_as_was_counted(make: Callable[[Stack], dict[str, Edit]], tmp_path: Path, ids: Tensor) -> None:
    """FLOPs of matrix products, but for scores in attentions and for solving."""
    made = write_model(tmp_path / "m", llama_config(num_hidden_layers=6, intermediate_size=20))
    stack = stack_of(made, torch.float32)
    edits = make(stack)
    work = count_work(stack.spec, list(edits.values()), scored=0, context=T)
    scores = sum(work.attentions) * 4 * T * T * stack.spec.heads * stack.spec.head_dim
    size = Workbench(stack.spec, T, N, torch.float32).size
    solving = len(edits) * beside.solve_flops(size, stack.spec.hidden_size) if make is repaired else 0
    want = N * (work.block_flops - scores) + sum(work.once) - solving
    with FlopCounterMode(display=False) as counter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, "cross_fit", lambda folds, width: CrossFit(1.0, 0.5, tuple(f.residual for f in folds)))
        sweep(stack, ids, edits)
    assert counter.get_total_flops() == pytest.approx(want, rel=0.06)
