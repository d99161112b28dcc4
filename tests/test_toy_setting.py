"""A new setting is one line in one file: defined here, it is in the recipe, on the command line, and in the docs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.cli.from_settings import options
from ffn_fusion.errors import RecipeError, UsageError
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools


class Glaze(Settings):
    """Settings inside settings."""

    colour: Literal["red", "green"] = Field("red", description="Colour of the glaze.")


class ToyAnalysis(AnalysisSettings):
    """The settings of an analysis, and new ones."""

    shininess: int = Field(3, ge=1, description="How shiny the analysis is.")
    glaze: Glaze = Field(Glaze(), description="The glaze.")


class ToyRecipe(Recipe):
    """A recipe with them."""

    analysis: ToyAnalysis = Field(ToyAnalysis(), description="What to measure.")


def toy_recipe(**analysis: object) -> ToyRecipe:
    return ToyRecipe.parse({"model": "m", "output": "o", "analysis": analysis}, "toy.yaml")


def test_it_is_in_the_recipe() -> None:
    assert toy_recipe().analysis.shininess == 3
    found = toy_recipe(shininess=5, glaze={"colour": "green"}).analysis
    assert (found.shininess, found.glaze.colour) == (5, "green")
    with pytest.raises(RecipeError, match=r"analysis\.shininess: Input should be greater than or equal to 1"):
        toy_recipe(shininess=0)
    with pytest.raises(RecipeError, match=r"unknown key analysis\.shinines") as caught:
        toy_recipe(shinines=5)
    assert caught.value.hint == "did you mean shininess?"
    with pytest.raises(RecipeError) as caught:
        toy_recipe(glaze={"color": "red"})
    assert caught.value.hint == "did you mean colour?"


def test_it_is_on_the_command_line() -> None:
    app, given = typer.Typer(rich_markup_mode=None), list[ToyAnalysis]()

    @app.command()
    @options
    def toy(analysis: ToyAnalysis) -> None:
        """Measure."""
        given.append(analysis)

    runner = CliRunner()
    shown = " ".join(runner.invoke(app, ["--help"]).output.split())
    assert "--shininess <int>" in shown
    assert "How shiny the analysis is. [at least 1; default: 3]" in shown
    assert "--colour red|green" in shown
    assert runner.invoke(app, []).exit_code == 0
    assert runner.invoke(app, ["--shininess", "7", "--colour", "green", "--no-leave-last"]).exit_code == 0
    assert given == [ToyAnalysis(), ToyAnalysis(shininess=7, glaze=Glaze(colour="green"), leave_last=False)]
    wrong = runner.invoke(app, ["--shininess", "very"]).exception
    assert isinstance(wrong, UsageError)
    assert wrong.message.startswith("--shininess: Input should be a valid integer")


def test_it_is_in_the_docs() -> None:
    from tools.docs import recipe_table

    rows = recipe_table(ToyRecipe).splitlines()
    assert "| `analysis.shininess` | `3` | whole number ≥ 1 | How shiny the analysis is. |" in rows
    assert "| `analysis.glaze.colour` | `red` | `red`, `green` | Colour of the glaze. |" in rows
