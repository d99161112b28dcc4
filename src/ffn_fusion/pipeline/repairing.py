"""The stage ``repair``: fit the output projections of changed blocks on text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.checkpoint.staging import bytes_in, check_space
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.evaluation.quality import PARENT
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.models import PRUNED, REPAIRED, UNREPAIRED
from ffn_fusion.pipeline.texts import Windows, calibration_windows, split_windows
from ffn_fusion.repair.estimate import RepairEstimate
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.surgery.build import child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import Repairs, save_record


def repair(job: Job) -> None:
    """Repair the child, if anything was changed; the build takes the new weights from the workspace.

    A job that doesn't evaluate keeps back a few windows of text, and records what the repair gained on them.
    """
    if not job.repairs:
        return
    windows, kept_back = repair_windows(job)
    check_space(job.space.repairs, max(0, child_bytes(job.child) - bytes_in(job.space.repairs)))
    found = repair_child(_repair(job, windows), on_plan=job.listener.repairing, progress=job.progress)
    if not job.has("evaluate"):
        save_record(job.space.repairs, {**found.record, "gains": _gains(job, found, kept_back)})


def repair_estimate(job: Job) -> RepairEstimate | None:
    """Estimate what the repair will take; None if there is nothing to repair."""
    return _repair(job, repair_windows(job)[0]).estimate() if job.repairs else None


def repair_windows(job: Job) -> Windows:
    """Cut the windows to repair on, of the calibration's texts if the repair has none of its own.

    Raises:
        DataError: a text that can't be used.
    """
    repair, seed = job.recipe.repair, job.recipe.seed
    text = repair.model_copy(update={"texts": repair.texts or job.recipe.calibration.texts})
    if job.has("evaluate"):
        return calibration_windows(job.parent, text, seed), []
    return split_windows(job.parent, text, seed)


def _repair(job: Job, windows: Sequence[TokenWindows]) -> Repair:
    settings, dtype = job.recipe.repair, job.dtype(job.recipe.repair.dtype)
    return Repair(
        job.parent,
        job.blueprint,
        windows,
        job.space.repairs,
        settings,
        dtype,
        job.recipe.device,
        job.memory,
        base=job.from_library,
    )


def _gains(job: Job, repairs: Repairs, texts: Sequence[TokenWindows]) -> list[dict[str, Any]]:
    """Measure the KL to the parent of the child pruned, unrepaired and repaired, text by text."""
    if not texts:
        return []
    models: dict[str, TensorSource] = {
        PARENT: job.parent,
        PRUNED: Child(job.parent, job.blueprint.unfused()),
        UNREPAIRED: Child(job.parent, job.blueprint, 1, job.from_library),
        REPAIRED: Child(job.parent, job.blueprint, 1, repairs),
    }
    dtype = job.dtype(job.recipe.repair.dtype)
    found = evaluate(models, texts, dtype=dtype, device=job.recipe.device, progress=job.progress)
    names = [name for name in models if name != PARENT]
    return [
        {"text": text.text, "tokens": text.tokens, **{name: text.scores[name].kl for name in names}} for text in found
    ]
