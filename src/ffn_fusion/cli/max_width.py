"""``ffn-fusion max-width``: how wide a fused FFN may be on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import Only, options
from ffn_fusion.cli.options import Model, Revision, with_device
from ffn_fusion.engines.settings import BenchRequest

_ASKED = ("engine", "engine_program", "batches", "dtype", "device", "threads")


@options
def max_width(
    model: Model,
    asked: Annotated[BenchRequest, Only(*_ASKED)],
    opening: OpenSettings,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the curve (JSON), for --width-curve of other verbs.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; more are added where ratios are uncertain.", min=2)] = 7,
    most: Annotated[
        int | None,
        typer.Option(
            help="FFNs in the widest one; default: all that the model could fuse, in vLLM and llama.cpp up to a GiB.",
            min=1,
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a plot (SVG).")] = None,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how wide a fused FFN may be on this machine: time the same FFN weights at growing widths."""
    from ffn_fusion.checkpoint.notes import write_atomic
    from ffn_fusion.checkpoint.staging import check_target
    from ffn_fusion.engines.bench import check_askable
    from ffn_fusion.engines.width_curves import CONTEXT, widths_in
    from ffn_fusion.report.latency_grids import width_grid
    from ffn_fusion.sources import open_model

    for path in (output, plot):
        if path is not None:
            check_target(path, None)
    if plot is not None:
        from ffn_fusion.report.width_figure import width_chart
    asked = asked.replaced(contexts=(CONTEXT,), rounds=rounds)
    check_askable(asked)
    asked = with_device(asked)
    spec = open_model(model, revision=revision, opening=opening).spec
    with progress_bars() as bars:
        curve = widths_in(spec, asked, most=most, progress=bars)
    if output is not None:
        write_atomic(output, (curve.model_dump_json(indent=1) + "\n").encode())
    if plot is not None:
        write_atomic(plot, width_chart(curve).encode())
    if as_json:
        emit(curve.model_dump(mode="json"))
        return
    say(width_grid(curve), err=False)
    if output is not None:
        say(f"width curve: {output}", err=False)
