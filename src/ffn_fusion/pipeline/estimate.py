"""How long what's still to come will take: from the pace of the analysis on this machine, for a dry run to print."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.processes import current

_REPAIR_PASSES = 4  # the parent's and the child's blocks, activations once more, and their squares
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


def remaining_seconds(recipe: Recipe, checkpoint: Checkpoint, child_bytes: int, pace: Pace) -> dict[str, float]:
    """Seconds of the stages behind the plan. Evaluation and timing follow from the pace; the build from its bytes.

    Only the evaluation is shared by several processes. A decode step counts as a forward pass of 16 tokens: it reads
    the weights once, whatever the batch.
    """
    blocks = len(checkpoint.spec.blocks) + _head_blocks(checkpoint)
    texts = max(1, len(recipe.evaluation.texts))
    scored = _MODELS_SCORED + (_CONTROLS_SCORED if recipe.evaluation.controls else 0)
    found = {
        "repair": _REPAIR_PASSES
        * recipe.repair.tokens
        * len(checkpoint.spec.blocks)
        / (pace.tokens_per_second * current().world)
        * recipe.repair.enabled,
        "build": child_bytes / _DISK_BYTES_PER_SECOND,
        "evaluate": scored * texts * recipe.evaluation.tokens * blocks / (pace.tokens_per_second * current().world),
    }
    if recipe.bench.enabled:
        bench = recipe.bench
        tokens = sum(batch * bench.context + bench.new_tokens * max(16, batch) for batch in bench.batches)
        found["bench"] = 3 * (bench.rounds + 1) * tokens * blocks / pace.tokens_per_second
    return found


def _head_blocks(checkpoint: Checkpoint) -> float:
    """The head's size in blocks."""
    spec = checkpoint.spec
    head = spec.vocab_size * spec.hidden_size
    return len(spec.blocks) * head / max(1, checkpoint.parameters - head)
