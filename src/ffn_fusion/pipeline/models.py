"""The models that a job compares: the parent, the child on the way to its last form, and children of other rules."""

from __future__ import annotations

from ffn_fusion.analysis.loadable import loadable_choices
from ffn_fusion.analysis.rules import control_plans
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.evaluation.quality import PARENT, Control
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import is_repaired

PRUNED, FUSED, DISTILLED = "pruned", "fused", "distilled"
UNREPAIRED, REPAIRED = "unrepaired", "repaired"


def name_of_child(recipe: Recipe) -> str:
    """Return what the child is called in tables."""
    return DISTILLED if recipe.distillation.enabled else FUSED


def main_models(job: Job) -> dict[str, Checkpoint | Child]:
    """Return the parent, the child on the way to its last form, and that form, by name.

    The child is scored as it is on disk; pruned is the same child with its FFNs one after another.
    """
    models: dict[str, Checkpoint | Child] = {
        PARENT: job.parent,
        PRUNED: Child(job.parent, job.blueprint.unfused()),
        FUSED: open_folder(job.built),
    }
    if job.has("distill"):
        models[DISTILLED] = open_folder(job.space.output)
    return models


def scored_models(job: Job) -> tuple[dict[str, TensorSource], list[Control]]:
    """Return all models to score on text by name, and descriptions of those that only serve as controls.

    Children that other rules would have chosen are never written.
    """
    parent, blueprint, distilled = job.parent, job.blueprint, job.has("distill")
    models: dict[str, TensorSource] = {**main_models(job)}
    controls = list[Control]()
    if is_repaired(job.space.output):
        models[UNREPAIRED] = Child(parent, blueprint)
        which = "the fused" if distilled else "the same"
        meaning = f"{which} child before its repair"
        controls.append(_control(UNREPAIRED, meaning, blueprint))
    if job.recipe.evaluation.controls:
        scored = [blueprint]
        allows = loadable_choices(parent.spec, job.recipe.plan.for_engines)
        for control in control_plans(blueprint, job.evidence, job.plan_settings, allows):
            if control.blueprint in scored:  # the same child by another rule, already scored
                continue
            scored.append(control.blueprint)
            models[control.name] = Child(parent, control.blueprint)
            controls.append(_control(control.name, control.meaning, control.blueprint))
    return models, controls


def _control(name: str, meaning: str, blueprint: Blueprint) -> Control:
    dropped, runs = format_blocks(blueprint.dropped_attentions), format_runs(blueprint.runs)
    return Control(name=name, meaning=meaning, dropped=dropped, runs=runs)
