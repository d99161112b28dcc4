"""The models that a job compares: the parent, the child on the way to its last form, and children of other rules."""

from __future__ import annotations

from ffn_fusion.analysis.loadable import loadable_choices
from ffn_fusion.analysis.rules import control_plans
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.evaluation.evaluate import PARENT
from ffn_fusion.evaluation.quality import Control
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import is_repaired

PRUNED, FUSED, DISTILLED = "pruned", "fused", "distilled"
UNREPAIRED, REPAIRED = "unrepaired", "repaired"


def name_of_child(recipe: Recipe) -> str:
    """Return what the child is called in tables."""
    return DISTILLED if recipe.distillation.enabled else FUSED


def scored_models(job: Job) -> tuple[dict[str, TensorSource], list[Control]]:
    """Return all models to score by name, and descriptions of those that only serve as controls.

    The child is scored as it is on disk; pruned is the same child with its FFNs one after another. Children that other
    rules would have chosen are never written.
    """
    parent, blueprint, distilled = job.parent, job.blueprint, job.has("distill")
    models: dict[str, TensorSource] = {
        PARENT: parent,
        PRUNED: Child(parent, blueprint.unfused()),
        FUSED: open_folder(job.built),
    }
    controls = list[Control]()
    if distilled:
        models[DISTILLED] = open_folder(job.space.output)
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
