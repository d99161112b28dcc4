"""Repaired candidates in the sweep: against the primal regression, window by window, and killed at every block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from by_hand import parents, primal
from killed import OnProgress, States, assert_same_after_kills
from makers import Made, llama_config, random_ids, write_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ffn_fusion.blockwise.edits import Edit, FusedRun, RemoveAttention
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blockwise.sweep import PARENT, Swept, sweep
from ffn_fusion.blockwise.work import count_work
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.repair import candidate
from ffn_fusion.repair.candidate import RepairedRun, Workbench
from ffn_fusion.solve import cross_fit
from ffn_fusion.solve.cross_fit import CrossFit
from ffn_fusion.solve.token_weights import token_weights

L, T, N = 6, 8, 13
RIDGE = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = llama_config(num_hidden_layers=L, intermediate_size=20, mlp_bias=True)
    return write_model(tmp_path_factory.mktemp("parent") / "m", config, dtype="F64")


@pytest.fixture(scope="module")
def ids(made: Made) -> Tensor:
    return random_ids(made.config, N, T)


def stack_of(made: Made, dtype: torch.dtype = torch.float64) -> Stack:
    return Stack(open_folder(made.folder), dtype=dtype, resident=True)


def bench_of(stack: Stack, most: int = 2048) -> Workbench:
    return Workbench(stack.spec, T, N, stack.dtype, most)


def candidates(bench: Workbench) -> dict[str, RepairedRun]:
    """Runs that lend each other their sums, one that keeps its attention, one fused to its end, an attention alone."""
    return {
        "1-3": RepairedRun(1, 3, 2, False, bench, lender="1-5"),
        "1-4 whole": RepairedRun(1, 4, 4, False, bench, lender="1-5"),
        "1-5": RepairedRun(1, 5, 4, False, bench),
        "2-4 kept": RepairedRun(2, 4, 3, True, bench),
        "3 alone": RepairedRun(3, 3, 3, False, bench),
    }


@pytest.fixture
def one_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it's better than the old weights or not."""
    monkeypatch.setattr(candidate, "cross_fit", lambda folds, width: cross_fit._fit(folds, width, RIDGE, 1.0))


@torch.inference_mode()
def by_hand(stack: Stack, ids: Tensor, edit: RepairedRun) -> Tensor:
    """The last state of a repaired candidate, from whole tensors."""
    seen = parents(stack, ids)
    behind = [x for x, _ in seen[1:]] + [sweep(stack, ids, {}).state()]
    x, attention = seen[edit.first]
    start = x + attention if edit.keeps_attention else x
    parts = [stack.block(j).inner_and_outer("ffn", start) for j in range(edit.first, edit.fused_last + 1)]
    state = start + sum(outer for _, outer in parts)
    state = primal(torch.cat([inner for inner, _ in parts], -1), state, behind[edit.fused_last], RIDGE)
    for j in range(edit.fused_last + 1, edit.last + 1):
        inner, outer = stack.block(j).inner_and_outer("ffn", state)
        state = primal(inner, state + outer, behind[j], RIDGE)
    for j in range(edit.last + 1, L):
        state = state + stack.block(j).contributions(state).block
    return state


@pytest.mark.usefixtures("one_ridge")
def test_a_candidate_is_what_the_regression_on_the_other_windows_makes_it(made: Made, ids: Tensor) -> None:
    stack = stack_of(made)
    edits = candidates(bench_of(stack))
    for rows in (4096, T, 3 * T):
        swept = sweep(stack, ids, edits, rows=rows)
        for name, edit in edits.items():
            want = by_hand(stack, ids, edit)
            unrepaired = FusedRun(edit.first, edit.last, edit.fused_last, edit.keeps_attention)
            moved = (want - sweep(stack, ids, {"u": unrepaired}).state("u")).abs().max()
            assert (swept.state(name) - want).abs().max() < 1e-8 * moved, (name, rows)


def test_dtypes_agree(made: Made, ids: Tensor) -> None:
    """K travels in float32 with states in bfloat16."""
    exact = states_of(sweep(stack := stack_of(made), ids, candidates(bench_of(stack))))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        stack = stack_of(made, dtype)
        found = states_of(sweep(stack, ids, candidates(bench_of(stack)), rows=3 * T))
        for name, state in exact.items():
            assert float((found[name].double() - state).norm() / state.norm()) < tolerance, (name, dtype)


def states_of(swept: Swept) -> dict[str, Tensor]:
    return {name: swept.state(name) for name in (PARENT, *swept.kept)}


def test_repaired_comes_nearer_on_windows_it_was_not_fitted_to(made: Made) -> None:
    """Behind the last block of the candidate, where the regression aims; the model is random, so not by much."""
    ids = random_ids(made.config, 40, T)
    stack = stack_of(made)
    bench = Workbench(stack.spec, T, 40, stack.dtype)
    edits: dict[str, Edit] = {"repaired": RepairedRun(3, 5, 5, False, bench), "fused": FusedRun(3, 5, 5)}
    swept = sweep(stack, ids, edits)
    goal = swept.state()
    weights = token_weights(goal.flatten(0, 1), "inverse-energy").view(40, T, 1)
    left = {name: float((weights * (swept.state(name) - goal).square()).sum()) for name in edits}
    assert left["repaired"] < 0.9 * left["fused"]


def test_one_window_stays_as_it_is(made: Made, ids: Tensor) -> None:
    """There is no other to fit to."""
    stack = stack_of(made)
    found = states_of(sweep(stack, ids[:1], candidates(bench_of(stack))))
    assert torch.equal(found["1-5"], sweep(stack, ids[:1], {"u": FusedRun(1, 5, 4)}).state("u"))
    assert torch.equal(found["3 alone"], sweep(stack, ids[:1], {"u": RemoveAttention(3)}).state("u"))


def test_few_anchors_repair_less(made: Made, ids: Tensor) -> None:
    stack = stack_of(made)
    unrepaired = sweep(stack, ids, {"u": FusedRun(1, 5, 4)}).state("u")
    changes = []
    for most in (2048, 9, 1):
        state = sweep(stack, ids, candidates(bench_of(stack, most)), rows=2 * T).state("1-5")
        assert state.isfinite().all()
        changes.append(float((state - unrepaired).norm()))
    assert changes[0] > changes[1]


def test_activations_that_are_not_finite_spoil_nothing_else(made: Made, ids: Tensor, tmp_path: Path) -> None:
    """Tokens whose states overflow are no anchors; the others are repaired."""
    embedding = made.tensors["model.embed_tokens.weight"].clone()
    token = int(ids[2, -1])
    embedding[token] = float("nan")
    other = write_model(tmp_path / "m", made.config, dtype="F64", tensors={"model.embed_tokens.weight": embedding})
    stack = stack_of(other)
    state = sweep(stack, ids, candidates(bench_of(stack))).state("1-5")
    clean = ~(ids == token).any(1)  # a window is spoilt whole: 0 * NaN in attentions
    assert state[clean].isfinite().all()
    assert not torch.equal(state[clean], sweep(stack, ids, {"u": FusedRun(1, 5, 4)}).state("u")[clean])


# ---- killed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_killed_at_every_block_it_goes_on_to_the_same_bits(
    dtype: torch.dtype, made: Made, ids: Tensor, tmp_path: Path
) -> None:
    stack = stack_of(made, dtype)

    def run(folder: Path, on_progress: OnProgress) -> States:
        states = FileStates(folder, N, T, stack.spec.hidden_size, dtype, stack.device)
        edits = {**candidates(bench_of(stack)), "u": FusedRun(1, 3, 2)}
        journal = Journal(folder / "journal", "key")
        return states_of(sweep(stack, ids, edits, states=states, journal=journal, rows=3 * T, on_progress=on_progress))

    assert_same_after_kills(run, tmp_path, range(1, 60, 4))


# ---- what it takes


@pytest.mark.parametrize("most", [2048, 21])
def test_as_much_work_as_was_counted(most: int, made: Made, ids: Tensor) -> None:
    """FLOPs of matrix products, but for scores in attentions and for solving."""
    stack = stack_of(made, torch.float32)
    bench = bench_of(stack, most)
    for edits in ({}, candidates(bench)):
        work = count_work(stack.spec, list(edits.values()), scored=0, context=T)
        scores = sum(work.attentions) * 4 * T * T * stack.spec.heads * stack.spec.head_dim
        places = sum(edit.last - edit.fused_last + 1 for edit in edits.values())
        solving = places * candidate.solve_flops(bench.size, stack.spec.hidden_size)
        want = N * (work.block_flops - scores) + sum(work.once) - solving
        with FlopCounterMode(display=False) as counter, pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                candidate, "cross_fit", lambda folds, width: CrossFit(1.0, 0.5, tuple(f.residual for f in folds))
            )
            sweep(stack, ids, edits)
        assert counter.get_total_flops() == pytest.approx(want, rel=0.06)


def test_slots_are_no_more_than_planned(made: Made, ids: Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for most in (2048, 20, 5):
            stack = stack_of(made, dtype)
            edits = candidates(bench_of(stack, most))
            work = count_work(stack.spec, list(edits.values()), scored=0, context=T)
            for windows in (N, 6, 3):
                written: list[int] = []

                class Counting(FileStates):
                    def turn(self, seconds: float = 0.0, written: list[int] = written) -> None:
                        written.append(len(self._next_places))
                        super().turn(seconds)

                states = Counting(made.folder / "states", windows, T, 32, dtype, stack.device)
                sweep(stack, ids[:windows], edits, states=states, rows=2 * T)
                states.close()
                assert all(here <= planned for here, planned in zip(written[1:], work.states, strict=True))
                if windows == N and most == 2048:
                    assert written[1:] == list(work.states)


def test_chunks_are_large_enough_to_fit_on(made: Made) -> None:
    stack = stack_of(made)
    work = count_work(stack.spec, list(candidates(bench_of(stack)).values()), scored=0, context=T)
    assert work.windows_wanted == 2 * 2048 // T
    assert work.held > 0 < work.row_held
    assert count_work(stack.spec, [FusedRun(1, 3, 2)], scored=0, context=T).windows_wanted == 1
