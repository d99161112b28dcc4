"""``ffn-fusion eval``: perplexity, KL to the parent, agreement with it, and scores on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import with_device
from ffn_fusion.errors import UsageError
from ffn_fusion.evaluation.settings import ScoredTextSettings, TaskSettings
from ffn_fusion.settings import ComputeSettings

if TYPE_CHECKING:
    from ffn_fusion.evaluation.task_estimate import TasksEstimate


@options
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Children to score.", metavar="MODEL...")],
    parent: Annotated[str, typer.Option(help="The model they're compared with.")],
    texts: ScoredTextSettings,
    tasks: TaskSettings,
    compute: ComputeSettings,
    opening: OpenSettings,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for each model's result on each task: the same command goes on there."
        ),
    ] = None,
    tasks_only: Annotated[bool, typer.Option("--tasks-only", help="Score on tasks alone, not on text.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what tasks will take, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Score children against their parent on held-out text, and on tasks of the lm-evaluation-harness."""
    from ffn_fusion.evaluation.evaluate import evaluate as score
    from ffn_fusion.evaluation.quality import PARENT, Quality
    from ffn_fusion.evaluation.task_estimate import check_tasks, estimate_tasks
    from ffn_fusion.evaluation.tasks import score_models
    from ffn_fusion.pipeline.texts import held_out_windows
    from ffn_fusion.sources import open_model

    if not tasks.tasks and (tasks_only or dry_run or kept):
        raise UsageError("no tasks to score on", "name some: --tasks hellaswag or --tasks ./task.yaml")
    opened = {PARENT: open_model(parent, opening=opening)}
    for name, model in zip(unique_names(models, PARENT), models, strict=True):
        opened[name] = open_model(model)
    device = with_device(compute).device
    if dry_run:
        plan = estimate_tasks(opened, tasks, seed=compute.seed, device=device, memory=compute.memory)
        _show_plan(plan, as_json)
        return
    if tasks.tasks:
        check_tasks(tasks)  # before the texts take their time
    windows = [] if tasks_only else held_out_windows(opened[PARENT], texts, compute.seed)
    with progress_bars() as bars:
        quality = Quality(
            texts=score(opened, windows, device=device, progress=bars) if windows else (),
            tasks=score_models(
                opened, tasks, seed=compute.seed, device=device, memory=compute.memory, folder=kept, progress=bars
            )
            if tasks.tasks
            else (),
        )
    if as_json:
        emit(quality.model_dump(mode="json"))
        return
    from ffn_fusion.report.quality_grids import quality_grid
    from ffn_fusion.report.task_grids import tasks_grid

    if quality.texts:
        say(quality_grid(quality), err=False)
    if quality.tasks:
        say(tasks_grid(quality.tasks), err=False)


def _show_plan(plan: TasksEstimate, as_json: bool) -> None:
    from dataclasses import asdict

    from ffn_fusion.report.task_grids import tasks_estimate_grid

    if as_json:
        emit(asdict(plan))
    else:
        say(tasks_estimate_grid(plan), "dry run: nothing was scored", err=False)


def unique_names(models: list[str], *taken: str) -> list[str]:
    """Short names for the tables: the last part of each, or all of it where that isn't unique."""
    short = [Path(model).name for model in models]
    return [
        model if short.count(name) > 1 or name in taken else name for name, model in zip(short, models, strict=True)
    ]
