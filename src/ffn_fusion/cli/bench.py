"""``ffn-fusion bench``: times to the first and of each further token, several models interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.evaluate import unique_names
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import with_device
from ffn_fusion.engines.settings import BenchRequest

if TYPE_CHECKING:
    from ffn_fusion.latency.timing import Latency

Plot = Annotated[Path | None, typer.Option(help="Draw the times into this .png or .svg file.")]
SubBlocksFlag = Annotated[
    bool,
    typer.Option(
        "--sub-blocks", help="Time one attention and one FFN of each shape instead, as transformers runs them."
    ),
]
CudaGraph = Annotated[
    bool | None,
    typer.Option("--cuda-graph/--no-cuda-graph", help="Sub-blocks on a GPU: launch them as CUDA graphs (the default)."),
]


@options
def bench(
    models: Annotated[
        list[str], typer.Argument(help="Models to time; the first is compared with.", metavar="MODEL...")
    ],
    asked: BenchRequest,
    sub_blocks: SubBlocksFlag = False,
    cuda_graph: CudaGraph = None,
    plot: Plot = None,
    as_json: JsonFlag = False,
) -> None:
    """Time models in an engine, all of them in turn in every round: time to first token, time per output token, memory,
    bytes moved, and the share of what this machine can do at best.
    """
    from ffn_fusion.engines.bench import bench_in
    from ffn_fusion.errors import UsageError
    from ffn_fusion.latency.summary import figures
    from ffn_fusion.report.latency_grids import latency_grid, work_grid

    if plot:
        _check_plot(plot)
    asked = with_device(asked)
    named = dict(zip(unique_names(models), models, strict=True))
    if len(named) < len(models):
        raise UsageError("a model is given twice", "give every model once")
    if sub_blocks:
        if asked.engine != "transformers" or plot:
            raise UsageError(
                "--sub-blocks has no plot, and no engine but transformers", "leave --engine and --plot out"
            )
        _sub_blocks(named, asked, cuda_graph, as_json)
        return
    with progress_bars() as bars:
        latency = bench_in(named, asked, bars)
    if plot:
        _draw(latency, plot)
    if as_json:
        emit(latency.model_dump(mode="json") | {"figures": figures(latency)})
        return
    say(latency_grid(latency), *filter(None, [work_grid(latency)]), err=False)


def _sub_blocks(named: dict[str, str], asked: BenchRequest, cuda_graph: bool | None, as_json: bool) -> None:
    from ffn_fusion.engines.bench import sub_blocks_of
    from ffn_fusion.report.latency_grids import sub_block_grid

    with progress_bars() as bars:
        found, specs = sub_blocks_of(named, asked, cuda_graph, bars)
    if as_json:
        settings = dict.fromkeys((t.phase, t.batch, t.context) for t in found.timings)
        sums = [
            {"model": name, "phase": s[0], "batch": s[1], "context": s[2], "seconds": found.seconds(spec, *s)}
            for name, spec in specs.items()
            for s in settings
        ]
        emit(found.model_dump(mode="json") | {"models": sums})
        return
    say(sub_block_grid(found, specs), err=False)


def _check_plot(target: Path) -> None:
    """Before anything is timed."""
    from ffn_fusion.errors import OutputError, UsageError
    from ffn_fusion.report import svg  # noqa: F401  (says so where matplotlib is missing)

    if target.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {target}: no such kind of file", "name it .png or .svg")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: no such folder", "make it, or draw into another one")


def _draw(latency: Latency, target: Path) -> None:
    from ffn_fusion.errors import OutputError
    from ffn_fusion.report.latency_figure import latency_bars, latency_png

    drawing: Any = latency_png(latency) if target.suffix == ".png" else latency_bars(latency).encode()
    try:
        target.write_bytes(drawing)
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror}", "draw into another file") from error
