"""``ffn-fusion analyze``: measure what planning needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import Model, Revision, with_device
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.settings import ComputeSettings


@options
def analyze(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the evidence.")],
    calibration: TextSettings,
    analysis: AnalysisSettings,
    compute: ComputeSettings,
    opening: OpenSettings,
    blueprint: Annotated[
        Path | None, typer.Option(help="Measure the child that this blueprint makes of MODEL instead.")
    ] = None,
    revision: Revision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure block dependency, sub-block importance and the damage of candidate runs."""
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.report.estimate_grids import passes_grid, passes_json
    from ffn_fusion.report.evidence_grids import importance_grid, reverse_order_grid, side_by_side_grid

    sections = {"calibration": calibration, "analysis": analysis}
    recipe = Recipe(
        model=model, revision=revision, output=output, **dict(with_device(compute)), **dict(opening), **sections
    )
    decided = Blueprint.load(blueprint) if blueprint else None
    with progress_bars() as bars:
        space = Workspace.hidden(output, evidence=output)
        job = begin(recipe, ("analyze",), space=space, decided=decided, listener=TerminalListener(bars))
        job.carry_out(dry_run=dry_run)
    if dry_run:
        plans = job.estimates["analyze"]
        if as_json:
            emit(passes_json(plans))
        else:
            say(passes_grid(plans), "dry run: nothing was measured", err=False)
        return
    evidence = job.evidence
    if as_json:
        emit(evidence.model_dump(mode="json", exclude={"matrices", "channels"}))
        return
    for part in analysis.scores:
        say(importance_grid(evidence, part=part), err=False)
    if evidence.side_by_side:
        say(side_by_side_grid(evidence, limit=10), err=False)
    if evidence.reverse_order:
        say(reverse_order_grid(evidence), err=False)
    say(f"evidence: {output}", err=False)
