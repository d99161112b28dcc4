"""``ffn-fusion widths``: how wide a fused FFN may be on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.bench import Dtype, Engine, Program
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.options import Device, Model, Revision


def widths(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the curve (JSON), for --widths of other verbs.")
    ] = None,
    batch: Annotated[list[int], typer.Option(help="Batch size; may be given several times.", min=1)] = [1, 8],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Timed rounds; more are added where ratios are uncertain.", min=2)] = 7,
    most: Annotated[
        int | None,
        typer.Option(
            help="FFNs in the widest one; default: all that the model could fuse, in vLLM and llama.cpp up to a GiB.",
            min=1,
        ),
    ] = None,
    engine: Engine = "transformers",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Threads of a CPU; default: as many as torch takes.", min=1)
    ] = None,
    engine_program: Program = None,
    plot: Annotated[Path | None, typer.Option(help="File for a plot (SVG).")] = None,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Time FFNs of one, two, three, ... times the model's width on the same weights: what plans may fuse here."""
    from ffn_fusion.checkpoint.staging import check_target, write_atomic
    from ffn_fusion.engines.bench import BenchSettings, check_askable
    from ffn_fusion.engines.width_curves import CONTEXT, widths_in
    from ffn_fusion.report.latency_grids import width_grid
    from ffn_fusion.sources import open_model

    for path in (output, plot):
        if path is not None:
            check_target(path, None)
    if plot is not None:
        from ffn_fusion.report.width_figure import width_chart
    asked = BenchSettings(
        batches=tuple(batch),
        contexts=(CONTEXT,),
        rounds=rounds,
        dtype=dtype,
        device=device,
        threads=threads,
        program=engine_program,
    )
    check_askable(engine, asked)
    spec = open_model(model, revision=revision).spec
    with progress_bars() as bars:
        curve = widths_in(engine, spec, asked, most=most, progress=bars)
    if output is not None:
        write_atomic(output, (curve.model_dump_json(indent=1) + "\n").encode())
    if plot is not None:
        write_atomic(plot, width_chart(curve).encode())
    if as_json:
        emit(curve.model_dump(mode="json"))
        return
    say(width_grid(curve), err=False)
    if output is not None:
        say(f"widths: {output}", err=False)
