"""``ffn-fusion analyze``: measure what planning needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import Context, Device, Memory, Model, Revision, Seed, Texts, Tokens


@options
def analyze(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the evidence.")],
    settings: AnalysisSettings,
    text: Texts = None,
    tokens: Tokens = 4096,
    context: Context = 512,
    blueprint: Annotated[
        Path | None, typer.Option(help="Measure the child that this blueprint makes of MODEL instead.")
    ] = None,
    revision: Revision = None,
    seed: Seed = 0,
    device: Device = "cpu",
    memory: Memory = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure block dependency, sub-block importance and the damage of candidate runs."""
    from ffn_fusion.analysis.measure import analyze as measure
    from ffn_fusion.analysis.measure import estimate_analysis
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.cli.passes import passes_json, passes_table
    from ffn_fusion.pipeline.recipe import Text
    from ffn_fusion.pipeline.stages import calibration_windows
    from ffn_fusion.report.terminal import importance_table, reverse_order_table
    from ffn_fusion.surgery.build import check_blueprint
    from ffn_fusion.surgery.child import Child
    from ffn_fusion.units import parse_bytes

    budget = parse_bytes(memory) if memory else None
    checkpoint = open_model(model, revision=revision)
    measured: Checkpoint | Child = checkpoint
    if blueprint:
        of = Blueprint.load(blueprint)
        check_blueprint(checkpoint, of)
        measured = Child(checkpoint, of)
    windows = calibration_windows(
        checkpoint.folder, Text(texts=tuple(text or ()), tokens=tokens, context=context), seed
    )
    workspace = output / ".analysis"
    if dry_run:
        plans = estimate_analysis(measured, windows, settings, device=device, memory=budget, workspace=workspace)
        if as_json:
            emit(passes_json(plans))
        else:
            say(passes_table(plans), "dry run: nothing was measured", err=False)
        return
    with progress_bars() as bars:
        evidence = measure(
            measured,
            windows,
            settings,
            seed=seed,
            device=device,
            memory=budget,
            workspace=workspace,
            on_plan=lambda plan: say(passes_table([plan])),
            progress=bars,
        )
    evidence.save(output)
    shutil.rmtree(workspace, ignore_errors=True)
    if as_json:
        emit(evidence.model_dump(mode="json", exclude={"matrices"}))
        return
    for part in settings.scores:
        say(importance_table(evidence, part=part), err=False)
    if evidence.reverse_order:
        say(reverse_order_table(evidence), err=False)
    say(f"evidence: {output}", err=False)
