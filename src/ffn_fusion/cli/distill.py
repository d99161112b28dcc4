"""``ffn-fusion distill``: the child learns from its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import DryRun, Output, with_device
from ffn_fusion.distillation.settings import DistillationSettings
from ffn_fusion.settings import ComputeSettings


@options
def distill(
    child: Annotated[Path, typer.Argument(help="A child that ffn-fusion made.", metavar="CHILD")],
    parent: Annotated[str, typer.Option(help="The model it was made of.")],
    output: Output,
    settings: DistillationSettings,
    compute: ComputeSettings,
    opening: OpenSettings,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="One stage as TOKENS:CONTEXT, e.g. 200k:512, instead of --tokens and --context; repeatable.",
            metavar="TOKENS:CONTEXT",
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a child on text to match its parent's predictions; the result is a child like any other."""
    from ffn_fusion.distillation.checks import read_record
    from ffn_fusion.distillation.sharding import launched_sharded
    from ffn_fusion.pipeline.distilling import tracking
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.report.estimate_grids import distill_estimate_grid, distill_json
    from ffn_fusion.report.training_grids import distillation_grid
    from ffn_fusion.units import parse_stage

    stages = [{"tokens": count, "context": length} for count, length in map(parse_stage, stage or ())]
    settings = settings.replaced(enabled=True, shard=settings.shard or launched_sharded(), stages=stages)
    recipe = Recipe(model=parent, output=output, **dict(with_device(compute)), **dict(opening), distillation=settings)
    with progress_bars() as bars:
        space = Workspace.hidden(output, child=child)
        job = begin(recipe, ("distill",), space=space, listener=TerminalListener(bars))
        log = tracking(recipe)
        if log and not dry_run:
            say(f"logs: {log.folder}; {log.look} shows them")
        job.carry_out(dry_run=dry_run)
    if dry_run:
        plans = job.estimates["distill"]
        if as_json:
            emit(distill_json(plans))
        else:
            say(distill_estimate_grid(plans), "dry run: nothing was trained", err=False)
        return
    record = read_record(output)
    assert record is not None
    if as_json:
        emit({"output": str(output), **record})
        return
    say(distillation_grid(record), f"child: {output}", err=False)
