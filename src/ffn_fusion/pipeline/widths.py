"""The plan's maximum width: what a person says, else what the machine's width curve says."""

from __future__ import annotations

from pathlib import Path

from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.width_curve import WidthCurve
from ffn_fusion.pipeline.recipe import PlanSection, Recipe


def measures_widths(recipe: Recipe) -> bool:
    """Whether a run has to measure the curve: only where its plan may fuse, and where speed is of interest."""
    plan = recipe.plan
    decided = plan.drop is not None or plan.max_width is not None or plan.fuse == 0
    return plan.widths == "auto" and recipe.bench.enabled and not decided


def limited(section: PlanSection, spec: ModelSpec) -> PlanSection:
    """The section with ``max_width`` from its curve's file, where it names one. FFNs that are wider already stay.

    Raises:
        DataError: no curve there. UsageError: of another model.
    """
    if not isinstance(section.widths, Path):
        return section
    curve = WidthCurve.load(section.widths)
    curve.check_fits(spec)
    limit = curve.max_width
    if limit is not None:
        limit = max(limit, *(block.ffn.width for block in spec.blocks if block.ffn))
    return section.model_copy(update={"widths": "none", "max_width": limit})
