"""The main job: recipe -> evidence -> blueprint -> child -> quality and latency -> report."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.compute import on_device
from ffn_fusion.errors import DataError
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.preflight import preflight
from ffn_fusion.pipeline.publish import publish
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.result import Result, result_of
from ffn_fusion.pipeline.stages import STAGES
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.sources import open_model

ALL = tuple(stage.name for stage in STAGES)


def run(recipe: Recipe, *, dry_run: bool = False, listener: Listener | None = None) -> Result:
    """Carry out a recipe, from where an earlier call with the same output stopped.

    Args:
        dry_run: stop with the plan, before anything is built.

    Raises:
        FfnFusionError: a mistake that a person can fix; finished stages are kept for the next call.
    """
    job = begin(recipe.with_implied(), listener=listener)
    job.carry_out(dry_run=dry_run)
    if dry_run:
        plans = tuple(job.estimates.get("distill", ()))
        return Result(job.parent, job.plan, job.space, distillation_plans=plans)
    return result_of(job)


def begin(
    recipe: Recipe,
    stages: Collection[str] = ALL,
    *,
    space: Workspace | None = None,
    decided: Blueprint | None = None,
    listener: Listener | None = None,
) -> Job:
    """Check a recipe and open its model; return the job, ready to be carried out.

    Args:
        stages: names of the stages to carry out.
        space: where results go; by default ``OUT.run``.
        decided: the blueprint to build, if it isn't left to the recipe's plan.

    Raises:
        FfnFusionError: everything that can be known to fail before any stage begins.
    """
    listener, recipe = listener or Listener(), on_device(recipe)
    preflight(recipe, stages)
    chosen = [stage for stage in STAGES if stage.name in stages]
    parent = open_parent(recipe, listener)
    job = Job(recipe, parent, chosen, space or Workspace(recipe.output), listener, decided)
    job.check()
    return job


def republish(folder: Path) -> Result:
    """Write the report and the model card of a finished job again.

    Args:
        folder: the job's workspace OUT.run, or the child OUT.

    Raises:
        DataError: there is no finished job.
    """
    output = folder.with_suffix("") if folder.suffix == ".run" else folder
    space = Workspace(output)
    needed = [space.recipe, space.blueprint, space.quality, space.samples]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise DataError(f"{space.folder}: no finished run there ({missing[0]} is missing)", "run its recipe first")
    recipe = Recipe.load(space.recipe)
    job = Job(recipe, open_parent(recipe, Listener()), STAGES, space, Listener())
    publish(job)
    return result_of(job)


def open_parent(recipe: Recipe, listener: Listener) -> Checkpoint:
    """Open the recipe's model, under the name that it goes by."""

    def on_progress(what: str, share: float) -> None:
        listener.progress(what, round(100 * share), 100)

    checkpoint = open_model(recipe.model, revision=recipe.revision, opening=recipe, on_progress=on_progress)
    listener.opened(checkpoint)
    return replace(checkpoint, name=recipe.base_model) if recipe.base_model else checkpoint
