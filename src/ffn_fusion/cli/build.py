"""``ffn-fusion build`` and ``fuse``: write the child, from a blueprint or from explicit runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.analysis.settings import NAMED, PlanSettings
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, plan_lines, progress_bars, say
from ffn_fusion.cli.from_settings import Only, options
from ffn_fusion.cli.options import DryRun, Model, Output, Revision, with_device
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.settings import ComputeSettings
from ffn_fusion.surgery.settings import BuildSettings

if TYPE_CHECKING:
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.pipeline.recipe import Recipe

UNREPAIRED_LINE = "the child is unrepaired: give --text, and what surgery cost is repaired in closed form"
Repair = Annotated[RepairSettings, Only("enabled", "texts", "tokens", "context")]


@options
def build(
    model: Model,
    blueprint: Annotated[Path, typer.Option(help="Blueprint that `plan` wrote.")],
    output: Output,
    plan: Annotated[PlanSettings, Only("for_engines")],
    settings: BuildSettings,
    repair: Repair,
    compute: ComputeSettings,
    opening: OpenSettings,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the child that a blueprint describes."""
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.pipeline.recipe import Recipe

    decided = Blueprint.load(blueprint)
    sections = {"plan": plan, "build": settings, "repair": _if_text(repair)}
    recipe = Recipe(
        model=model, revision=revision, output=output, **dict(with_device(compute)), **dict(opening), **sections
    )
    _build(recipe, decided, dry_run, as_json)


@options
def fuse(
    model: Model,
    output: Output,
    plan: Annotated[
        PlanSettings,
        Only(*NAMED, "max_width", "width_curve", "norm", "for_engines"),
    ],
    settings: BuildSettings,
    repair: Repair,
    compute: ComputeSettings,
    opening: OpenSettings,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Plan and build with explicit runs: drop these attentions, fuse these runs."""
    from ffn_fusion.errors import UsageError
    from ffn_fusion.pipeline.recipe import Recipe

    if not plan.explicit:
        raise UsageError("nothing to do: no change is named", "say what to change, like --runs 5-9 (see --help)")
    sections = {"plan": plan, "build": settings, "repair": _if_text(repair)}
    recipe = Recipe(
        model=model, revision=revision, output=output, **dict(with_device(compute)), **dict(opening), **sections
    )
    _build(recipe, None, dry_run, as_json)


def _if_text(repair: RepairSettings) -> RepairSettings:
    """Without text, nothing is repaired."""
    return repair if repair.texts else repair.replaced(enabled=False)


def _build(recipe: Recipe, decided: Blueprint | None, dry_run: bool, as_json: bool) -> None:
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.report.estimate_grids import repair_estimate_grid, repair_json
    from ffn_fusion.report.training_grids import gains_grid, repairs_grid
    from ffn_fusion.surgery.repairs import read_repairs

    output = recipe.output
    with progress_bars() as bars:
        listener = TerminalListener(bars)
        job = begin(recipe, ("repair", "build"), space=Workspace.hidden(output), decided=decided, listener=listener)
        job.carry_out(dry_run=dry_run)
    estimate = job.estimates.get("repair")
    record = None if dry_run else read_repairs(output)
    if as_json:
        repair = repair_json(estimate) if estimate else record
        about = {"blueprint": job.blueprint.model_dump(mode="json"), "about": plan_lines(job.parent, job.plan)}
        emit({"output": None if dry_run else str(output), **about, "repair": repair})
    elif estimate:
        say(repair_estimate_grid(estimate))
    elif record:
        say(repairs_grid(record), gains_grid(record), f"child: {output}", err=False)
    elif not dry_run:
        say(UNREPAIRED_LINE)
        say(f"child: {output}", err=False)
