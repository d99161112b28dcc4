"""Projections that a norm follows: the regression against plain least squares, where the truth is known, and a walk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families.cases import NORM_AFTER, write_family
from torch import Tensor

from ffn_fusion.blockwise.edits import RemoveAttention
from ffn_fusion.blockwise.norm_after import NormAfter
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import Observation, sweep
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.repair import candidate
from ffn_fusion.repair.after_norm import AfterNorm
from ffn_fusion.repair.candidate import RepairedRun, Workbench
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.repair.settings import RepairSettings, Solver
from ffn_fusion.solve import cross_fit
from ffn_fusion.solve.choice import Fit
from ffn_fusion.solve.dual import solve_dual
from ffn_fusion.solve.normal_equations import NormalEquations
from ffn_fusion.solve.primal import solve_primal
from ffn_fusion.solve.token_weights import median_norm, token_weights

N, HELD, F, D = 300, 100, 24, 64


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Problem:
    """Activations of tokens, the last of which are held out, and the outputs to reach."""

    def __init__(self, goal_weight: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        self.h, self.w = random(N, F, seed=1), random(N, seed=2).square() + 0.1
        self.norm, self.weight, self.bias = NormAfter(scale, 1e-6), weight, bias
        self.goal = self.norm(self.h @ goal_weight.T + (0.0 if bias is None else random(D, seed=3)))
        self.after = AfterNorm(self.norm)
        self.outer = self.h @ weight.T + (0.0 if bias is None else bias)
        missing = self.goal - self.norm(self.outer)
        self.residual, self.weights = self.after.regression(missing, self.w, self.outer)

    def error(self, weight: Tensor, bias: Tensor | float = 0.0) -> float:
        """Relative error on the held-out tokens."""
        before, left = (
            ((self.norm(z) - self.goal)[-HELD:].square().sum(1) * self.w[-HELD:]).sum()
            for z in (self.outer, self.h @ weight.T + bias)
        )
        return float(left / before)

    def solve(self, solver: Solver, ridges: tuple[float, ...]) -> Fit:
        """The fit of W - W0."""
        cut = N - HELD
        if solver == "primal":
            sums = []
            for part in (slice(0, cut), slice(cut, N)):
                sums.append(NormalEquations(F, D, bias=self.bias is not None, dtype=torch.float64))
                sums[-1].add(self.h[part], self.residual[part], self.weights[part])

            def primal_error(x: Tensor) -> float:
                return self._error(self.h[cut:] @ x[:F] + (0.0 if self.bias is None else x[F]))

            return self.after.of_projection(
                solve_primal(sums[0], ridges, sums[1], refit=False, held_out_error=primal_error)
            )
        kernel, bias = self.h @ self.h.T, self.bias is not None
        found = self.after.of_projection(
            solve_dual(kernel, self.residual, self.weights, F, cut, ridges, bias=bias, held_out_error=self._error)
        )
        assert found.dual_ND is not None
        return Fit(found.ridge, found.dual_ND.mT @ self.h, found.bias_D, found.path)

    def _error(self, added: Tensor) -> float:
        held = slice(N - HELD, N)
        return self.after.error(self.outer[held], self.goal[held], self.w[held], added)


def reference(p: Problem, lam: float, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The W and the bias of least error with fixed rms, channel by channel by numpy's least squares."""
    h, rms = p.h[:tokens].numpy(), p.norm.rms(p.outer)[:tokens].numpy()
    root = np.sqrt(p.w[:tokens].numpy())[:, None]
    rows = root * h / rms
    ones = root / rms if p.bias is not None else root[:, :0]
    ridge = np.sqrt(lam * np.square(rows).sum(0).mean()) * np.eye(F)
    weights, biases = [], []
    for d in range(D):
        g, w0 = float(p.norm.scale_D[d]), p.weight[d].numpy()
        a = g * np.concatenate([np.c_[rows, ones], np.c_[ridge, np.zeros((F, ones.shape[1]))]])
        b = np.concatenate([root[:, 0] * p.goal[:tokens, d].numpy(), g * ridge @ w0])
        found = np.linalg.lstsq(a, b, rcond=None)[0]
        weights.append(found[:F])
        biases.append(found[F:])
    return np.array(weights), np.array(biases)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_it_is_least_squares_with_the_rms_held_fixed(solver: Solver, bias: bool) -> None:
    p = Problem(random(D, F, seed=4), random(D, F, seed=5), random(D, seed=6) + 2, random(D, seed=7) if bias else None)
    fit = p.solve(solver, (0.03,))
    assert fit.change_DF is not None
    # The dual is refitted to all tokens; the primal here is not, so that its error can be checked below.
    weight, biases = reference(p, 0.03, N if solver == "dual" else N - HELD)
    assert np.abs((p.weight + fit.change_DF).numpy() - weight).max() <= 1e-9 * np.abs(weight).max()
    if bias:
        assert p.bias is not None
        assert fit.bias_D is not None
        assert np.abs((p.bias + fit.bias_D).numpy() - biases[:, 0]).max() <= 1e-9 * np.abs(biases).max()
    weight, biases = reference(p, 0.03, N - HELD)
    error = p.error(torch.from_numpy(weight), torch.from_numpy(biases[:, 0]) if bias else 0.0)
    assert fit.held_out_error == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize(("noise", "left"), [(0.03, 1e-2), (0.3, 1e-2)])
def test_the_matrix_that_made_the_goal_is_nearly_found(solver: Solver, noise: float, left: float) -> None:
    """What stays of the squared error is the part along each output, 1 of D, since the rms changes with that alone."""
    truth = random(D, F, seed=4)
    p = Problem(truth, truth + noise * random(D, F, seed=5), random(D, seed=6) + 2)
    fit = p.solve(solver, (1e-6,))
    assert fit.change_DF is not None
    assert p.error(p.weight + fit.change_DF) <= left


def test_channels_that_add_next_to_nothing_keep_their_weights() -> None:
    scale = torch.ones(D, dtype=torch.float64)
    scale[3], scale[5] = 0.0, -1e-4
    p = Problem(random(D, F, seed=4), random(D, F, seed=5), scale)
    change = p.solve("primal", (0.1,)).change_DF
    assert change is not None
    assert change.isfinite().all()
    assert [d for d in range(D) if not change[d].any()] == [3, 5]


def test_a_change_that_is_worse_once_it_is_normed_is_not_taken() -> None:
    """The norm takes lengths away: to come closer to goals of another length, rows only grow or shrink together."""
    p = Problem(random(D, F, seed=4), random(D, F, seed=4), torch.ones(D, dtype=torch.float64))
    p.goal = 5 * p.norm(p.outer) + 1e-3 * random(N, D, seed=8)
    p.residual, p.weights = p.after.regression(p.goal - p.norm(p.outer), p.w, p.outer)
    fit = p.solve("primal", (0.01,))
    assert (fit.ridge, fit.reason, fit.held_out_error) == (None, "no gain on held-out tokens", 1.0)


# ---- in a model


@pytest.fixture(scope="module", params=NORM_AFTER)
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("norm-after")
    write_family(folder, NORM_AFTER[request.param])
    return open_folder(folder)


def windows() -> list[TokenWindows]:
    ids = torch.randint(67, (40, 12), generator=torch.Generator().manual_seed(0))
    return [TokenWindows("random", ids.numpy())]


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_no_held_out_error_is_raised_and_a_stopped_repair_goes_on(
    parent: Checkpoint, solver: Solver, tmp_path: Path
) -> None:
    blueprint = parent.blueprint().drop_attention([1]).drop_ffn([2])
    settings = RepairSettings(solver=solver, horizon=2)

    def repair(name: str) -> Repair:
        return Repair(parent, blueprint, windows(), tmp_path / name, settings, dtype=torch.float64)

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    whole = repair_child(repair("whole"))
    with pytest.raises(KeyboardInterrupt):
        repair_child(repair("stopped"), progress=stop)
    assert repair_child(repair("stopped")).digest == whole.digest
    errors = [place["held_out_error"] for place in whole.record["places"]]
    assert max(errors) <= 1
    assert min(errors) < 0.9


RIDGE = 0.3


@torch.inference_mode()
def test_a_candidate_in_the_sweep_is_fitted_to_the_other_windows(
    parent: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 3 without its attention, against the primal regression; the families' norms compute in float32."""
    monkeypatch.setattr(candidate, "cross_fit", lambda folds, width: cross_fit._fit(folds, width, RIDGE, 1.0))
    stack, ids = Stack(parent, dtype=torch.float64, resident=True), torch.from_numpy(windows()[0].ids_NT)[:13]
    seen: list[Tensor] = []

    def observe(now: Observation) -> dict[str, Tensor]:
        seen.append(now.x.clone())
        return {}

    bench = Workbench(stack.spec, ids.shape[1], len(ids), stack.dtype)
    swept = sweep(stack, ids, {"repaired": RepairedRun(3, 3, 3, False, bench)}, observe=observe)
    block, x, goal = stack.block(3), seen[3], seen[4]
    norm = block.norm_after("ffn")
    assert norm is not None
    after = AfterNorm(norm)
    inner, added = block.inner_and_outer("ffn", x)
    outer = block.projection("ffn")(inner)
    median, sums = median_norm(goal.flatten(0, 1)), []
    for fold in (0, 1):
        h, z, missing, y = (state[fold::2].flatten(0, 1) for state in (inner, outer, goal - x - added, goal))
        sums.append(NormalEquations(h.shape[1], z.shape[1], dtype=torch.float64))
        weights = token_weights(y, "inverse-energy", median=median).double()
        sums[fold].add(h, *after.regression(missing, weights, z))
    state = x.clone()
    for fold in (0, 1):
        found = solve_primal(sums[1 - fold], [RIDGE], sums[1 - fold], refit=False, tolerance=1e-12)
        change = after.of_projection(found).change_DF
        assert change is not None
        state[fold::2] += norm(outer[fold::2] + inner[fold::2] @ change.mT)
    last = state + stack.block(4).contributions(state).block
    moved = (last - sweep(stack, ids, {"u": RemoveAttention(3)}).state("u")).abs().max()
    assert (swept.state("repaired") - last).abs().max() <= 1e-5 * moved
