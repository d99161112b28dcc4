from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.mixture import Weighted
from ffn_fusion.errors import RecipeError
from ffn_fusion.pipeline.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_defaults_and_paths(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    recipe = Recipe.load(write(tmp_path, "model: model\noutput: out\ncalibration: {texts: [a.txt]}\n"))
    assert recipe.model == str(tmp_path / "model")
    assert recipe.output == tmp_path / "out"
    assert recipe.calibration.texts == (tmp_path / "a.txt",)
    assert Recipe.load(write(tmp_path, "model: org/name\noutput: out\n")).model == "org/name"


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, "model: m\noutput: out\nplan: {without_attention: 5-10, runs: 5}\n"))
    assert recipe.plan.runs == ((5, 5),)
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml()), "x") == recipe


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("model: m\noutput: o\nplann: {}", "unknown key plann", "did you mean plan"),
        ("model: m\noutput: o\nplan: {max_widht: 3}", "unknown key plan.max_widht", "did you mean max_width"),
        ("output: o", "model is missing", "model"),
        ("model: m\noutput: o\nplan: {drop_attention: many}", "plan.drop_attention", ""),
        ("model: m\noutput: o\nseed: -", "r.yaml", ""),
        ("model: m\n  output: o\n bad", "not valid YAML", ""),
        ("", "no keys", ""),
        ("- a list", "no keys", ""),
        ("model: m\noutput: o\nplan: {speedup: 0.5}", "plan.speedup", ""),
        ("model: m\noutput: o\nplan: {steps: 0}", "plan.steps", ""),
        ("model: m\noutput: o\nplan: {speedup: 1.2, steps: 40}", "plan.steps: steps and speedup are two budgets", ""),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, text: str, line: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(write(tmp_path, text))
    assert line in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        Recipe.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_parse(path: Path) -> None:
    assert Recipe.load(path).model


def test_texts_of_every_form(tmp_path: Path) -> None:
    texts = ["a.txt", {"text": "b.jsonl", "weight": 2}, "hub:someone/texts:short@validation", "c.txt=0.5"]
    parsed = Recipe.parse({"model": "m", "output": "o", "calibration": {"texts": texts}}, "here").resolved(tmp_path)
    one, two, hub, three = parsed.calibration.texts
    assert one == tmp_path / "a.txt"
    assert two == Weighted(tmp_path / "b.jsonl", 2.0)
    assert hub == HubText("someone/texts", "short", "validation")
    assert three == Weighted(tmp_path / "c.txt", 0.5)
    (tmp_path / "again.yaml").write_text(parsed.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml").calibration == parsed.calibration


@pytest.mark.parametrize(
    ("section", "text", "says"),
    [
        ("calibration", {"text": "a.txt", "weight": 0}, "isn't a positive number"),
        ("repair", {"txt": "a.txt"}, "is no text"),
        ("evaluation", {"text": "a.txt", "weight": 2}, "scored one by one"),
    ],
)
def test_texts_that_are_none(section: str, text: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        Recipe.parse({"model": "m", "output": "o", section: {"texts": [text]}}, "here")
    assert f"{section}.texts" in caught.value.message
