"""Mistakes in a recipe that can be found before its model is fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec

from ffn_fusion.data.mixture import TextEntry, where
from ffn_fusion.data.source import check_source
from ffn_fusion.engines.bench import check_engine
from ffn_fusion.errors import MissingExtraError, UsageError
from ffn_fusion.evaluation.task_estimate import check_extra
from ffn_fusion.pipeline.predicting import places
from ffn_fusion.pipeline.recipe import Recipe


def preflight(recipe: Recipe, stages: Collection[str]) -> None:
    """Check the texts, programs and optional packages that a recipe's stages need.

    Raises:
        DataError, UsageError, MissingExtraError: one line each.
    """
    if "report" in stages:
        for package in ("matplotlib", "jinja2"):
            if find_spec(package) is None:
                raise MissingExtraError(f"the report needs {package}", "pip install 'ffn-fusion[report]'")
    if "distill" in stages and recipe.distillation.enabled and find_spec("accelerate") is None:
        raise MissingExtraError("distillation needs accelerate", "pip install 'ffn-fusion[train]'")
    if "tasks" in stages and recipe.evaluation.tasks:
        check_extra()
    for stage, texts in _texts(recipe).items():
        for text in texts if stage in stages else ():
            check_source(where(text))
    if "plan" in stages:
        _check_search(recipe)
    if "bench" in stages and recipe.bench.enabled:
        check_engine(recipe.bench)
    places(recipe)


def _check_search(recipe: Recipe) -> None:
    """A job makes one decision, from a library or from evidence."""
    budgets = recipe.search.budgets
    if recipe.search.sweep or recipe.search.solutions > 1:
        raise UsageError(
            "a job builds one child: a sweep or several solutions are for `ffn-fusion search`",
            "leave out search.sweep and search.solutions",
        )
    decided = [name for name in ("steps", "speedup", "parameters") if getattr(recipe.plan, name) is not None]
    decided += ["changes named by block"] * recipe.plan.explicit
    if budgets and decided:
        raise UsageError(
            f"{decided[0]} and a budget of {next(iter(budgets))}: one plans by evidence, the other from a library",
            "give budgets of one of them, see docs/library.md",
        )


def _texts(recipe: Recipe) -> Mapping[str, tuple[TextEntry, ...]]:
    """Return the texts that each stage reads."""
    trainings = recipe.distillation.trainings if recipe.distillation.enabled else ()
    return {
        "analyze": recipe.calibration.texts,
        "library": recipe.library.texts if recipe.library.enabled else (),
        "repair": recipe.repair.texts if recipe.repair.enabled else (),
        "distill": tuple(text for section in trainings for text in section.texts),
        "evaluate": recipe.evaluation.texts,
    }
