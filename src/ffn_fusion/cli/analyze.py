"""``ffn-fusion analyze``: measure what planning needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.options import Context, Device, Model, Revision, Seed, Texts, Tokens


def analyze(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the evidence.")],
    text: Texts = None,
    tokens: Tokens = 4096,
    context: Context = 512,
    max_stretch: Annotated[int, typer.Option(help="Longest run to measure, in blocks.", min=2)] = 5,
    candidate_share: Annotated[
        float, typer.Option(help="Measure runs among this share of the attentions.", min=0.01, max=1)
    ] = 0.5,
    leave_last: Annotated[
        bool,
        typer.Option("--leave-last/--also-last", help="Leave a run's last FFN out, or measure both ways."),
    ] = True,
    revision: Revision = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Measure block dependency, attention importance and the damage of candidate runs."""
    from ffn_fusion.analysis.measure import analyze as measure
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.pipeline.recipe import Text
    from ffn_fusion.pipeline.stages import calibration_windows
    from ffn_fusion.report.terminal import importance_table

    checkpoint = open_model(model, revision=revision)
    section = Text(texts=tuple(text or ()), tokens=tokens, context=context)
    windows = calibration_windows(checkpoint.folder, section, seed)
    with progress_bars() as bars:
        evidence = measure(
            checkpoint,
            windows,
            seed=seed,
            max_stretch=max_stretch,
            candidate_share=candidate_share,
            leave_last=leave_last,
            device=device,
            progress=bars,
        )
    evidence.save(output)
    if as_json:
        emit(evidence.model_dump(mode="json", exclude={"matrices"}))
        return
    say(importance_table(evidence), f"evidence: {output}", err=False)
