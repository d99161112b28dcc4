"""How long the stages of a job will take, by the pace of the analysis on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.estimate import DistillEstimate
from ffn_fusion.families.layout import sub_block_parameters
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.processes import current
from ffn_fusion.repair.estimate import RepairEstimate

_DISK_BYTES_PER_SECOND = 300e6  # read, hashed, written and synced: what a modest disk manages
_MODELS_SCORED = 3  # parent, pruned, fused
_CONTROLS_SCORED = 3


@dataclass(frozen=True)
class Pace:
    """Block evaluations of one token a second, as one process of the analysis ran."""

    tokens_per_second: float

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"block_tokens_per_second": self.tokens_per_second}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Pace | None:
        try:
            return cls(float(json.loads(path.read_text(encoding="utf-8"))["block_tokens_per_second"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def remaining_seconds(
    recipe: Recipe,
    checkpoint: Checkpoint,
    child_bytes: int,
    estimates: Mapping[str, Any],
    pace: Pace,
) -> dict[str, float]:
    """Estimate the seconds of the stages after the plan: the build by its bytes, all others by the pace.

    A decode step counts as a forward pass of 16 tokens: it reads the weights once, whatever the batch.

    Args:
        child_bytes: size of the child.
        estimates: what the repair and the distillation will take, by the names of the stages.
    """
    blocks = len(checkpoint.spec.blocks) + _head_blocks(checkpoint)
    texts = max(1, len(recipe.evaluation.texts))
    distilled = recipe.distillation.enabled
    one_model = texts * recipe.evaluation.tokens * blocks / (pace.tokens_per_second * current().world)
    scored = _MODELS_SCORED + distilled + (_CONTROLS_SCORED if recipe.evaluation.controls else 0)
    repair: RepairEstimate | None = estimates.get("repair")
    distillation: Sequence[DistillEstimate] = estimates.get("distill", ())
    found = {
        "repair": flops_seconds(repair.flops if repair else 0.0, checkpoint, pace),
        "build": child_bytes / _DISK_BYTES_PER_SECOND,
    }
    if distilled:  # after every stage the parent and the child are scored
        learning = flops_seconds(sum(plan.flops for plan in distillation), checkpoint, pace)
        found["distill"] = learning + 2 * len(recipe.distillation.trainings) * one_model
    found["evaluate"] = scored * one_model
    if recipe.bench.enabled:
        bench = recipe.bench
        workloads = product(bench.batches, bench.contexts)
        tokens = sum(batch * context + bench.new_tokens * max(16, batch) for batch, context in workloads)
        found["bench"] = 3 * (bench.rounds + 1) * tokens * blocks / pace.tokens_per_second
    return found


def flops_seconds(flops: float, checkpoint: Checkpoint, pace: Pace) -> float:
    """Seconds that one process takes for a number of FLOPs."""
    return flops / (pace.tokens_per_second * _token_flops(checkpoint))


def _head_blocks(checkpoint: Checkpoint) -> float:
    """The head's size in blocks."""
    spec = checkpoint.spec
    head = spec.vocab_size * spec.hidden_size
    return len(spec.blocks) * head / max(1, checkpoint.parameters - head)


def _token_flops(checkpoint: Checkpoint) -> float:
    """One token through a block, in the mean."""
    blocks = checkpoint.spec.blocks
    parts = [sub_block_parameters(checkpoint.spec, part) for block in blocks for part in (block.attention, block.ffn)]
    return 2.0 * sum(parts) / max(1, len(blocks))
