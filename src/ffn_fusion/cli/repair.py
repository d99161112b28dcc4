"""``ffn-fusion repair``: quality back without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.from_settings import Without, options
from ffn_fusion.cli.options import Output, with_device
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.settings import ComputeSettings
from ffn_fusion.surgery.settings import BuildSettings


@options
def repair(
    child: Annotated[Path, typer.Argument(help="A child that ffn-fusion made, or a blueprint file.", metavar="CHILD")],
    parent: Annotated[str, typer.Option(help="The model it was made of.")],
    output: Output,
    settings: Annotated[RepairSettings, Without("enabled")],
    build: BuildSettings,
    compute: ComputeSettings,
    opening: OpenSettings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Repair a child on text: solve its changed blocks again in closed form, to bring its states near the parent's."""
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.staging import DISTILLATION
    from ffn_fusion.errors import DataError, UsageError
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.repair.places import places
    from ffn_fusion.report.estimate_grids import repair_estimate_grid, repair_json
    from ffn_fusion.report.training_grids import gains_grid, repairs_grid
    from ffn_fusion.surgery.repairs import read_repairs

    if (child / DISTILLATION).is_file():
        raise UsageError(
            f"{child}: distilled, and repair solves anew from the parent's weights",
            "repair first and distil then; or name its blueprint.json, to begin again without the distillation",
        )
    decided = Blueprint.load(child if child.is_file() else child / "blueprint.json")
    if not places(decided):
        raise DataError(f"{child}: nothing to repair, no block of it was changed", "name a child that was changed")
    recipe = Recipe(
        model=parent, output=output, **dict(with_device(compute)), **dict(opening), repair=settings, build=build
    )
    with progress_bars() as bars:
        listener = TerminalListener(bars)
        job = begin(recipe, ("repair", "build"), space=Workspace.hidden(output), decided=decided, listener=listener)
        job.carry_out(dry_run=dry_run)
    if dry_run:
        plan = job.estimates["repair"]
        if as_json:
            emit(repair_json(plan))
        else:
            say(repair_estimate_grid(plan), "dry run: nothing was repaired", err=False)
        return
    record = read_repairs(output)
    assert record is not None
    if as_json:
        emit({"output": str(output), **record})
        return
    say(repairs_grid(record), gains_grid(record), f"child: {output}", err=False)
