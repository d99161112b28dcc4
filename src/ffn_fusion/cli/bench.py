"""``ffn-fusion bench``: prefill and decode times of several models, interleaved."""

from __future__ import annotations

from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.evaluate import unique_names
from ffn_fusion.cli.options import Device


def bench(
    models: Annotated[
        list[str], typer.Argument(help="Models to time; the first is compared with.", metavar="MODEL...")
    ],
    batch: Annotated[list[int], typer.Option(help="Batch size; may be given several times.", min=1)] = [1, 8],  # noqa: B006
    context: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(help="Decode steps.", min=1)] = 16,
    rounds: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 5,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Time prefill and decode in transformers, all models in turn in every round."""
    import torch

    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.errors import UsageError
    from ffn_fusion.latency.load import load_model
    from ffn_fusion.latency.measure import bench as measure
    from ffn_fusion.report.terminal import latency_table

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"--dtype {dtype} isn't known", "take float32, bfloat16 or float16")
    names = unique_names(models)
    folders = {name: open_model(model).folder for name, model in zip(names, models, strict=True)}
    loaded = {name: load_model(folder, getattr(torch, dtype), device) for name, folder in folders.items()}
    with progress_bars() as bars:
        latency = measure(
            loaded, batches=tuple(batch), context=context, new_tokens=new_tokens, rounds=rounds, progress=bars
        )
    if as_json:
        emit(latency.model_dump(mode="json"))
        return
    say(latency_table(latency), err=False)
