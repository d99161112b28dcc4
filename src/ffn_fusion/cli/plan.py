"""``ffn-fusion plan``: evidence and a budget -> a blueprint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.analysis.settings import NAMED, PlanSettings
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, say, show_plan
from ffn_fusion.cli.from_settings import Without, options
from ffn_fusion.cli.options import Model, Revision


@options
def plan(
    model: Model,
    evidence: Annotated[Path, typer.Option(help="Folder that `analyze` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the blueprint (JSON).")],
    settings: Annotated[PlanSettings, Without(*NAMED)],
    opening: OpenSettings,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose attentions to drop and runs to fuse: the least measured damage within a budget."""
    from ffn_fusion.analysis.evidence import Evidence
    from ffn_fusion.analysis.loadable import loadable_choices
    from ffn_fusion.analysis.rules import compare
    from ffn_fusion.pipeline.planning import make_plan
    from ffn_fusion.pipeline.widths import limited
    from ffn_fusion.report.quality_grids import compared_grid
    from ffn_fusion.sources import open_model

    checkpoint = open_model(model, revision=revision, opening=opening)
    settings = limited(settings, checkpoint.spec)
    measured = Evidence.load(evidence)
    made = make_plan(checkpoint, measured, settings)
    made.blueprint.save(output)
    allows = loadable_choices(checkpoint.spec, settings.for_engines)
    compared = compare(made.blueprint, measured, settings, allows)
    if as_json:
        emit(
            {
                "blueprint": made.blueprint.model_dump(mode="json"),
                "damage": made.selection.score,
                "counted_speedup": made.counted_speedup,
                "compared": [vars(row) for row in compared],
            }
        )
        return
    show_plan(checkpoint, made)
    if len(compared) > 1:
        say(compared_grid(compared))
    say(f"blueprint: {output}", err=False)
