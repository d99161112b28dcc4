"""Find what a child was decided by: its blueprint, the evidence, and the recipe's plan. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import Allows, anything, loadable_choices
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.sources import open_model


@dataclass(frozen=True)
class TakenDecision:
    """What a child was decided by.

    Args:
        plan: None if there is no recipe beside the child.
        allows: the changes that its engines can load.
    """

    blueprint: Blueprint
    evidence: Evidence
    plan: PlanSettings | None
    allows: Allows = anything


def find_decision(place: Path, evidence: Path | None = None) -> TakenDecision:
    """Find what a child was decided by.

    Args:
        place: a child OUT, its job's folder OUT.run, or a blueprint file.
        evidence: the folder of the evidence; None: the one in OUT.run.

    Raises:
        BlueprintError: the blueprint can't be read.
        DataError: no blueprint there, or no evidence.
        UsageError: a blueprint file without ``evidence``.
    """
    if place.is_file():
        if evidence is None:
            raise UsageError(
                f"{place}: a blueprint doesn't say what evidence it was planned from", "name it: --evidence FOLDER"
            )
        return TakenDecision(Blueprint.load(place), Evidence.load(evidence), None)
    is_run = place.suffix == ".run"
    space = Workspace(place.resolve().with_suffix("") if is_run else place.resolve())
    blueprint = place / "blueprint.json"
    if not blueprint.is_file():
        raise DataError(
            f"{place}: no blueprint.json there", "name a child that ffn-fusion made, its OUT.run, or a blueprint file"
        )
    if evidence is None and not space.evidence.is_dir():
        raise DataError(
            f"{space.evidence}: no evidence there",
            "name its folder with --evidence, or measure it with `ffn-fusion analyze`",
        )
    recipe = Recipe.load(space.recipe).with_implied() if space.recipe.is_file() else None
    found = Blueprint.load(blueprint), Evidence.load(evidence or space.evidence)
    if recipe is None:
        return TakenDecision(*found, None)
    return TakenDecision(*found, recipe.plan, _allows(recipe))


def _allows(recipe: Recipe) -> Allows:
    if not recipe.plan.for_engines:
        return anything
    return loadable_choices(
        open_model(recipe.model, revision=recipe.revision, opening=recipe).spec, recipe.plan.for_engines
    )
