"""What can be known to fail is said before anything long begins."""

from __future__ import annotations

from importlib.util import find_spec

from ffn_fusion.blueprint.ranges import parse_blocks, parse_runs
from ffn_fusion.data import read_documents
from ffn_fusion.errors import MissingExtraError, RecipeError
from ffn_fusion.pipeline.recipe import Recipe


def preflight(recipe: Recipe) -> None:
    """Check texts, ranges and optional packages of a recipe.

    Raises:
        DataError, UsageError, RecipeError, MissingExtraError: one line each.
    """
    for package in ("matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise MissingExtraError(f"the report needs {package}", "pip install 'ffn-fusion[report]'")
    for text in (*recipe.calibration.texts, *recipe.evaluation.texts):
        read_documents(text)
    plan = recipe.plan
    if plan.runs is not None and plan.drop is None:
        raise RecipeError("plan.runs is given without plan.drop", "say which attentions go: plan.drop: 5-10")
    parse_blocks(plan.drop or "")
    parse_runs(plan.runs or "")
