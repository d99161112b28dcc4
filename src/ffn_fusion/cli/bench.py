"""``ffn-fusion bench``: times to the first and of each further token, several models interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.evaluate import unique_names
from ffn_fusion.cli.options import Device

if TYPE_CHECKING:
    from ffn_fusion.engines.bench import BenchSettings
    from ffn_fusion.latency.timing import Latency

Engine = Annotated[str, typer.Option(help="What runs the models: transformers, vllm or llama.cpp.")]
Batches = Annotated[list[int], typer.Option(help="Batch size; may be given several times.", min=1)]
Contexts = Annotated[list[int], typer.Option(help="Tokens of the prompt; may be given several times.", min=1)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; for llama.cpp also q8_0, q4_k_m, ...")]
Plot = Annotated[Path | None, typer.Option(help="Draw the times into this .png or .svg file.")]
Sharers = Annotated[int, typer.Option(help="Processes that share a model, in vLLM.", min=1)]
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
Program = Annotated[
    Path | None,
    typer.Option(
        "--engine-program",
        help="vLLM's Python (default: $FFN_FUSION_VLLM_PYTHON, or this one), or llama.cpp's llama-bench "
        "(default: $LLAMA_BENCH, or the PATH).",
    ),
]


def bench(
    models: Annotated[
        list[str], typer.Argument(help="Models to time; the first is compared with.", metavar="MODEL...")
    ],
    engine: Engine = "transformers",
    batch: Batches = [1, 8],  # noqa: B006
    context: Contexts = [128],  # noqa: B006
    new_tokens: Annotated[int, typer.Option(help="Decode steps.", min=1)] = 16,
    rounds: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 5,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of each process, on a CPU.", min=1)] = None,
    tensor_parallel: Sharers = 1,
    engine_program: Program = None,
    sub_blocks: SubBlocksFlag = False,
    cuda_graph: CudaGraph = None,
    plot: Plot = None,
    as_json: JsonFlag = False,
) -> None:
    """Time models in an engine, all of them in turn in every round: time to first token, time per output token, memory,
    bytes moved, and the share of what this machine can do at best.
    """
    from ffn_fusion.engines.bench import BenchSettings, bench_in
    from ffn_fusion.errors import UsageError
    from ffn_fusion.latency.summary import figures
    from ffn_fusion.report.latency_grids import latency_grid, work_grid

    if plot:
        _check_plot(plot)
    asked = BenchSettings(
        batches=tuple(batch),
        contexts=tuple(context),
        new_tokens=new_tokens,
        rounds=rounds,
        dtype=dtype,
        device=device,
        threads=threads,
        tensor_parallel=tensor_parallel,
        program=engine_program,
    )
    named = dict(zip(unique_names(models), models, strict=True))
    if len(named) < len(models):
        raise UsageError("a model is given twice", "give every model once")
    if sub_blocks:
        if engine != "transformers" or plot:
            raise UsageError(
                "--sub-blocks has no plot, and no engine but transformers", "leave --engine and --plot out"
            )
        _sub_blocks(named, asked, cuda_graph, as_json)
        return
    with progress_bars() as bars:
        latency = bench_in(engine, named, asked, bars)
    if plot:
        _draw(latency, plot)
    if as_json:
        emit(latency.model_dump(mode="json") | {"figures": figures(latency)})
        return
    say(latency_grid(latency), *filter(None, [work_grid(latency)]), err=False)


def _sub_blocks(named: dict[str, str], asked: BenchSettings, cuda_graph: bool | None, as_json: bool) -> None:
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
