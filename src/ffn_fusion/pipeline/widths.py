"""The plan's maximum width: what a person sets, otherwise what the machine's width curve says."""

from __future__ import annotations

from pathlib import Path

from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.width_curve import WidthCurve
from ffn_fusion.pipeline.recipe import Recipe


def measures_widths(recipe: Recipe) -> bool:
    """Return whether a job has to measure the curve: only if its plan may fuse and speed is benchmarked."""
    plan = recipe.plan
    decided = plan.explicit or plan.max_width is not None or plan.fuse == 0
    return plan.width_curve == "auto" and recipe.bench.enabled and not decided


def limited(settings: PlanSettings, spec: ModelSpec) -> PlanSettings:
    """Return the settings with ``max_width`` from the curve that they name, if any; wider FFNs of the model stay.

    Raises:
        DataError: there is no curve. UsageError: it is of another model.
    """
    if not isinstance(settings.width_curve, Path):
        return settings
    curve = WidthCurve.load(settings.width_curve)
    curve.check_fits(spec)
    limit = curve.max_width
    if limit is not None:
        limit = max(limit, *(block.ffn.width for block in spec.blocks if block.ffn))
    return settings.model_copy(update={"width_curve": "none", "max_width": limit})
