"""The parent block by block, and the regression of a repaired candidate, from whole tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import Observation, sweep
from ffn_fusion.solve.normal_equations import NormalEquations
from ffn_fusion.solve.primal import solve_primal
from ffn_fusion.solve.token_weights import median_norm, token_weights


def parents(stack: Stack, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For every block: the parent's state before it, and what its attention adds."""
    seen: list[tuple[Tensor, Tensor]] = []

    def observe(now: Observation) -> dict[str, Tensor]:
        seen.append((now.x.clone(), now.added.attention.clone()))
        return {}

    sweep(stack, ids, {}, observe=observe)
    return seen


def primal(inner: Tensor, state: Tensor, goal: Tensor, ridge: float) -> Tensor:
    """``state`` repaired: each fold of windows by the regression fitted to the other one. [N, T, F], [N, T, D]."""
    median = median_norm(goal.flatten(0, 1))
    sums = []
    for fold in (0, 1):
        equations = NormalEquations(inner.shape[-1], state.shape[-1], dtype=torch.float64)
        h, s, y = (x[fold::2].flatten(0, 1) for x in (inner, state, goal))
        equations.add(h, y - s, token_weights(y, "inverse-energy", median=median).double())
        sums.append(equations)
    repaired = state.clone()
    for fold in (0, 1):
        change = solve_primal(sums[1 - fold], [ridge], sums[1 - fold], refit=False, tolerance=1e-12).change_DF
        assert change is not None
        repaired[fold::2] += inner[fold::2] @ change.mT
    return repaired
