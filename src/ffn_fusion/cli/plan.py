"""``ffn-fusion plan``: evidence and a budget -> a blueprint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say, show_plan
from ffn_fusion.cli.options import (
    Drop,
    Engines,
    Fuse,
    MaxDamage,
    MaxWidth,
    Model,
    Norm,
    Repaired,
    Revision,
    Speedup,
    Steps,
    WidthCurve,
)


def plan(
    model: Model,
    evidence: Annotated[Path, typer.Option(help="Folder that `analyze` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the blueprint (JSON).")],
    drop_attention: Drop = 0.2,
    speedup: Speedup = None,
    steps: Steps = None,
    fuse: Fuse = "auto",
    max_damage: MaxDamage = 0.5,
    max_width: MaxWidth = None,
    width_curve: WidthCurve = None,
    norm: Norm = "own",
    for_engine: Engines = None,
    repair: Repaired = True,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose attentions to drop and runs to fuse: the least measured damage within a budget."""
    from ffn_fusion.analysis.evidence import Evidence
    from ffn_fusion.analysis.loadable import loadable_moves
    from ffn_fusion.analysis.rules import compare
    from ffn_fusion.analysis.settings import PlanSettings
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.cli.tables import compared_table
    from ffn_fusion.pipeline.planning import make_plan
    from ffn_fusion.pipeline.recipe import settings_from_options
    from ffn_fusion.pipeline.widths import limited

    section = settings_from_options(
        PlanSettings,
        drop_attention=drop_attention,
        speedup=speedup,
        steps=steps,
        fuse=fuse,
        max_damage=max_damage,
        max_width=max_width,
        width_curve=width_curve or "none",
        norm=norm,
        for_engines=tuple(for_engine or ()),
        repair=repair,
    )
    checkpoint = open_model(model, revision=revision)
    section = limited(section, checkpoint.spec)
    measured = Evidence.load(evidence)
    made = make_plan(checkpoint, measured, section)
    made.blueprint.save(output)
    allows = loadable_moves(checkpoint.spec, section.for_engines)
    compared = compare(made.blueprint, measured, section, allows)
    if as_json:
        emit(
            {
                "blueprint": made.blueprint.model_dump(mode="json"),
                "damage": made.selection.damage,
                "counted_speedup": made.counted_speedup,
                "compared": [vars(row) for row in compared],
            }
        )
        return
    show_plan(checkpoint, made)
    if len(compared) > 1:
        say("compared with other rules at the same size:", compared_table(compared))
    say(f"blueprint: {output}", err=False)
