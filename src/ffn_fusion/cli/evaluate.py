"""``ffn-fusion eval``: perplexity, KL to the parent and agreement with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import Without, options
from ffn_fusion.cli.options import with_device
from ffn_fusion.evaluation.settings import ScoredTextSettings
from ffn_fusion.settings import ComputeSettings


@options
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Children to score.", metavar="MODEL...")],
    parent: Annotated[str, typer.Option(help="The model they're compared with.")],
    texts: ScoredTextSettings,
    compute: Annotated[ComputeSettings, Without("memory")],
    opening: OpenSettings,
    as_json: JsonFlag = False,
) -> None:
    """Score children against their parent on held-out text."""
    from ffn_fusion.evaluation.evaluate import PARENT
    from ffn_fusion.evaluation.evaluate import evaluate as score
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.pipeline.texts import held_out_windows
    from ffn_fusion.sources import open_model

    opened = {PARENT: open_model(parent, opening=opening)}
    for name, model in zip(unique_names(models, PARENT), models, strict=True):
        opened[name] = open_model(model)
    windows = held_out_windows(opened[PARENT], texts, compute.seed)
    with progress_bars() as bars:
        quality = Quality(texts=score(opened, windows, device=with_device(compute).device, progress=bars))
    if as_json:
        emit(quality.model_dump(mode="json"))
        return
    from ffn_fusion.report.quality_grids import quality_grid

    say(quality_grid(quality), err=False)


def unique_names(models: list[str], *taken: str) -> list[str]:
    """Short names for the tables: the last part of each, or all of it where that isn't unique."""
    short = [Path(model).name for model in models]
    return [
        model if short.count(name) > 1 or name in taken else name for name, model in zip(short, models, strict=True)
    ]
