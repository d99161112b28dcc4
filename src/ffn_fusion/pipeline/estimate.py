"""How long the stages of a job will take, by the pace of the analysis on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.distillation.estimate import DistillEstimate
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import block_parameters, head_parameters
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.processes import current
from ffn_fusion.repair.estimate import RepairEstimate

_DISK_BYTES_PER_SECOND = 300e6  # read, hashed, written and synced: what a modest disk manages
_MODELS_SCORED = 3  # parent, pruned, fused
_CONTROLS_SCORED = 3


def pace_of(spec: ModelSpec, tokens: float, seconds: float) -> Pace:
    """Return the pace of a process that evaluated this many tokens, each in one block, heads and loading included."""
    rate = tokens * _block_flops(spec) / len(spec.blocks) / seconds
    return Pace(block_flops=rate, head_flops=rate)


def remaining_seconds(
    recipe: Recipe,
    spec: ModelSpec,
    child_bytes: int,
    estimates: Mapping[str, Any],
    pace: Pace,
) -> dict[str, float]:
    """Estimate the seconds of the stages after the plan: the build by its bytes, all others by the pace.

    A decode step counts as a forward pass of 16 tokens: it reads the weights once, whatever the batch.

    Args:
        spec: the parent.
        child_bytes: size of the child.
        estimates: what repair, distillation and tasks will take, by the names of the stages.
    """
    token = (_block_flops(spec) + 2.0 * head_parameters(spec)) / pace.block_flops
    texts = max(1, len(recipe.evaluation.texts))
    distilled = recipe.distillation.enabled
    one_model = texts * recipe.evaluation.tokens * token / current().world
    scored = _MODELS_SCORED + distilled + (_CONTROLS_SCORED if recipe.evaluation.controls else 0)
    repair: RepairEstimate | None = estimates.get("repair")
    distillation: Sequence[DistillEstimate] = estimates.get("distill", ())
    found = {
        "repair": repair.flops / pace.block_flops if repair else 0.0,
        "build": child_bytes / _DISK_BYTES_PER_SECOND,
    }
    if distilled:  # after every stage the parent and the child are scored
        learning = sum(plan.flops for plan in distillation) / pace.block_flops
        found["distill"] = learning + 2 * len(recipe.distillation.trainings) * one_model
    found["evaluate"] = scored * one_model
    if tasks := estimates.get("tasks"):
        found["tasks"] = tasks.tokens * token / current().world
    if recipe.bench.enabled:
        bench = recipe.bench
        workloads = product(bench.batches, bench.contexts)
        tokens = sum(batch * context + bench.new_tokens * max(16, batch) for batch, context in workloads)
        found["bench"] = 3 * (bench.rounds + 1) * tokens * token
    return found


def _block_flops(spec: ModelSpec) -> float:
    """Return the FLOPs of one token in the matrices of all blocks."""
    return 2.0 * sum(block_parameters(spec, i) for i in range(len(spec.blocks)))
