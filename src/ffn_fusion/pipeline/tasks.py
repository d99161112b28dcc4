"""The stage ``tasks``: score parent, pruned model and child on tasks of the lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

from pydantic import RootModel

from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.evaluation.quality import PARENT, Quality, TaskScores
from ffn_fusion.evaluation.settings import TaskSettings
from ffn_fusion.evaluation.task_estimate import Model, TasksEstimate, estimate_tasks
from ffn_fusion.evaluation.tasks import score_models
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.models import PRUNED, main_models, name_of_child
from ffn_fusion.surgery.child import Child

_Scores = RootModel[tuple[TaskScores, ...]]


def tasks(job: Job) -> None:
    """Score the models; the results of each on each task are kept, so that an interrupted stage goes on there."""
    recipe = job.recipe
    found = score_models(
        main_models(job),
        recipe.evaluation,
        seed=recipe.seed,
        device=recipe.device,
        memory=job.memory,
        folder=job.space.task_results,
        progress=job.progress,
    )
    write_atomic(job.space.tasks, (_Scores(found).model_dump_json(indent=1) + "\n").encode())


def estimate(job: Job) -> TasksEstimate:
    """Count what the tasks ask of every model. Raises: UsageError, DataError: they can't be carried out."""
    recipe = job.recipe
    models: dict[str, Model] = {
        PARENT: job.parent,
        PRUNED: Child(job.parent, job.blueprint.unfused()),
        name_of_child(recipe): job.child,
    }
    return estimate_tasks(models, recipe.evaluation, seed=recipe.seed, device=recipe.device, memory=job.memory)


def read_quality(job: Job) -> Quality:
    """Read the scores on text and on tasks that finished stages left."""
    quality = Quality.model_validate_json(job.space.quality.read_bytes())
    if not job.has("tasks"):
        return quality
    return quality.model_copy(update={"tasks": _Scores.model_validate_json(job.space.tasks.read_bytes()).root})


def inputs(job: Job) -> object:
    """Return what the scores depend on: settings, seed, and names, sizes and ages of files beside a task's."""
    section = job.recipe.evaluation.model_dump(mode="json", include=set(TaskSettings.model_fields))
    folders = {e if e.is_dir() else e.parent for e in job.recipe.evaluation.tasks if isinstance(e, Path)}
    files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return section, job.recipe.seed, job.recipe.device, states
