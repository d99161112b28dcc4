"""Time parent, pruned model and child in the recipe's engine, and measure the width curve in it."""

from __future__ import annotations

import shutil

import torch

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.engines.bench import bench_in
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.engines.width_curves import CONTEXT, widths_in
from ffn_fusion.evaluation.quality import PARENT
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.measure import bench
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.width_curve import WidthCurve
from ffn_fusion.modeling.load import load_model, realise
from ffn_fusion.pipeline.models import PRUNED, name_of_child
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.processes import Progress
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

_WIDTH_ROUNDS = 9


def bench_settings(recipe: Recipe) -> BenchRequest:
    """Return the benchmark that the recipe asks for."""
    return BenchRequest(**dict(recipe.bench), device=recipe.device, seed=recipe.seed)


def time_models(checkpoint: Checkpoint, blueprint: Blueprint, recipe: Recipe, progress: Progress) -> Latency:
    """Time parent, pruned model and child in the recipe's engine."""
    timed = _in_transformers if recipe.bench.engine == "transformers" else _in_engine
    return timed(checkpoint, blueprint, recipe, progress)


def measure_widths_for(recipe: Recipe, spec: ModelSpec, progress: Progress) -> WidthCurve:
    """Measure the width curve with the batches, dtype and engine of the recipe's benchmark."""
    asked = bench_settings(recipe).replaced(contexts=(CONTEXT,), rounds=_WIDTH_ROUNDS)
    return widths_in(spec, asked, progress=progress)


def _in_transformers(checkpoint: Checkpoint, blueprint: Blueprint, recipe: Recipe, progress: Progress) -> Latency:
    """Time the models in transformers; the pruned model is never written."""
    section = recipe.bench
    dtype: torch.dtype = getattr(torch, section.dtype)
    models = {
        PARENT: load_model(checkpoint, dtype, recipe.device),
        PRUNED: realise(Child(checkpoint, blueprint.unfused()), dtype, recipe.device),
        name_of_child(recipe): load_model(recipe.output, dtype, recipe.device),
    }
    return bench(
        models,
        batches=section.batches,
        context=section.contexts,
        new_tokens=section.new_tokens,
        rounds=section.rounds,
        seed=recipe.seed,
        progress=progress,
    )


def _in_engine(checkpoint: Checkpoint, blueprint: Blueprint, recipe: Recipe, progress: Progress) -> Latency:
    """Time the models in another engine, with temporary files."""
    place = Workspace(recipe.output).benched
    shutil.rmtree(place, ignore_errors=True)  # of an interrupted call
    place.mkdir()
    try:
        build(checkpoint, blueprint.unfused(), place / PRUNED, width_multiple=recipe.build.width_multiple)
        parent = checkpoint.folder
        if checkpoint.notes:  # no engine reads it as it is
            parent = build(checkpoint, checkpoint.blueprint(), place / PARENT)
        folders = {PARENT: parent, PRUNED: place / PRUNED, name_of_child(recipe): recipe.output}
        models = {name: str(folder) for name, folder in folders.items()}
        return bench_in(models, bench_settings(recipe).replaced(files=place), progress)
    finally:
        shutil.rmtree(place, ignore_errors=True)
