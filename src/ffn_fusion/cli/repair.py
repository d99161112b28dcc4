"""``ffn-fusion repair``: quality back without training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.options import Context, Device, Output, Seed, Texts, Tokens
from ffn_fusion.repair.settings import DEFAULT_HELD_OUT, DEFAULT_HORIZON, DEFAULT_WEIGHTING


def repair(
    child: Annotated[Path, typer.Argument(help="A child that ffn-fusion made, or a blueprint file.", metavar="CHILD")],
    parent: Annotated[str, typer.Option(help="The model it was made of.")],
    output: Output,
    text: Texts = None,
    tokens: Tokens = 24_576,
    context: Context = 512,
    horizon: Annotated[
        int, typer.Option(help="So many unchanged blocks behind a changed one take part.", min=0)
    ] = DEFAULT_HORIZON,
    held_out: Annotated[
        float, typer.Option(help="Share of the text that isn't fitted and decides.", min=0.01, max=0.9)
    ] = DEFAULT_HELD_OUT,
    weighting: Annotated[
        str, typer.Option(help="Against outlier tokens: none, capped or inverse-energy.")
    ] = DEFAULT_WEIGHTING,
    width_multiple: Annotated[int, typer.Option(help="As in build.", min=1)] = 256,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Solve a child's changed FFNs anew on text, in closed form, so that its states reach the parent's."""
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.checkpoint.staging import check_target
    from ffn_fusion.cli.tables import repairs_table
    from ffn_fusion.pipeline.recipe import BuildSection, Text, repair_from_options
    from ffn_fusion.pipeline.stages import build_child, calibration_windows
    from ffn_fusion.repair.repair import repair_child as solve
    from ffn_fusion.surgery.build import check_blueprint
    from ffn_fusion.surgery.child import Child

    section = repair_from_options(horizon=horizon, held_out=held_out, weighting=weighting)
    blueprint = Blueprint.load(child if child.is_file() else child / "blueprint.json")
    model = open_model(parent)
    check_blueprint(model, blueprint)
    check_target(output, model.folder)
    windows = calibration_windows(model.folder, Text(texts=tuple(text or ()), tokens=tokens, context=context), seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.repairs")  # always there: what a killed call left goes with the next
    try:
        with progress_bars() as bars:
            found = solve(model, blueprint, windows, folder, settings=section.settings(), device=device, progress=bars)
            built = Child(model, blueprint, width_multiple, found)
            build_child(built, BuildSection(width_multiple=width_multiple), output, bars)
            record = found.record
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        emit({"output": str(output), **record})
        return
    say(repairs_table(record), f"child: {output}", err=False)
