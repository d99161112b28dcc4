"""What can be known to fail is said before anything long begins."""

from __future__ import annotations

from importlib.util import find_spec

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.data.mixture import where
from ffn_fusion.data.source import check_source
from ffn_fusion.engines.bench import check_engine
from ffn_fusion.errors import MissingExtraError
from ffn_fusion.pipeline.distill_run import RunDistillation
from ffn_fusion.pipeline.distillation_section import TrainingSection
from ffn_fusion.pipeline.planning import check_early
from ffn_fusion.pipeline.predicting import check_places, places
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.repairing import repair_windows
from ffn_fusion.pipeline.stages import calibration_windows, held_out_windows
from ffn_fusion.pipeline.widths import limited
from ffn_fusion.pipeline.workspace import Workspace


def preflight(recipe: Recipe) -> None:
    """Check texts, ranges and optional packages of a recipe, before a model is fetched for it.

    Raises:
        DataError, UsageError, MissingExtraError: one line each.
    """
    for package in ("matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise MissingExtraError(f"the report needs {package}", "pip install 'ffn-fusion[report]'")
    repair = recipe.repair.texts if recipe.repair.enabled else ()
    distilled = [text for section in _trainings(recipe) for text in section.texts]
    if recipe.distillation.enabled and find_spec("accelerate") is None:
        raise MissingExtraError("distillation needs accelerate", "pip install 'ffn-fusion[train]'")
    for text in (*recipe.calibration.texts, *repair, *distilled, *recipe.evaluation.texts):
        check_source(where(text))
    if recipe.bench.enabled and recipe.bench.engine != "transformers":
        check_engine(recipe.bench.engine, recipe.bench.engine_program)
    places(recipe)


def preflight_parent(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Check a recipe against its parent: engines, attentions and runs that a person named, windows of every text.

    Raises:
        BlueprintError, CheckError, DataError: one line each; of a distillation, OutputError and UsageError too.
    """
    check_early(checkpoint, limited(recipe.plan, checkpoint.spec), recipe.build.width_multiple)
    check_places(recipe, checkpoint)
    calibration_windows(checkpoint.folder, recipe.calibration, recipe.seed)
    if recipe.repair.enabled:
        repair_windows(recipe, checkpoint.folder)
    held_out_windows(checkpoint.folder, recipe.evaluation, recipe.seed)
    if recipe.distillation.enabled:
        RunDistillation(recipe, checkpoint, Workspace(recipe.output)).check_early()


def _trainings(recipe: Recipe) -> tuple[TrainingSection, ...]:
    return recipe.distillation.trainings if recipe.distillation.enabled else ()
