"""What the report says of machines that aren't here: of which models, in which setting, and refused before anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from ffn_fusion.blueprint import AttentionSpec, Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.errors import RecipeError, UsageError
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.latency.hardware import predict
from ffn_fusion.latency.machines import find_machine
from ffn_fusion.latency.work import Setting
from ffn_fusion.pipeline.predicting import check_places, places, predictions
from ffn_fusion.pipeline.preflight import preflight
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.run import ALL


@pytest.fixture
def parent(tmp_path: Path) -> Checkpoint:
    return open_folder(tiny_model(tmp_path / "m").folder)


def recipe(**predicted: Any) -> Recipe:
    bench = {"batches": [1, 4], "contexts": [32], "new_tokens": 8}
    return Recipe.parse({"model": "m", "output": "o", "bench": bench, "predict": predicted}, "here")


def test_every_machine_and_batch(parent: Checkpoint) -> None:
    """The same as ``predict`` says of each model; pruned is the child with its FFNs apart."""
    blueprint = Blueprint.identity(parent.spec.parent("m")).apply([1, 2, 3], [(1, 2)])
    found = predictions(recipe(machines=["2xh100", "rtx4090"]), parent, blueprint)
    first = [next(iter(models.values())) for models in found]
    assert [(one.machine, one.setting.devices, one.setting.batch) for one in first] == [
        ("h100", 2, 1), ("h100", 2, 4), ("rtx4090", 1, 1), ("rtx4090", 1, 4)
    ]  # fmt: skip
    assert all(list(models) == ["parent", "pruned", "fused"] for models in found)
    setting = Setting(2, 4, 32, 8, "fp32", "fp32")
    for name, made in (("pruned", blueprint.unfused()), ("fused", blueprint)):
        assert found[1][name] == predict(find_machine("h100"), child_spec(parent.spec, made, 256), setting)
    assert found[0]["fused"].token < found[0]["pruned"].token < found[0]["parent"].token
    assert predictions(recipe(), parent, blueprint) == []


def test_precision(parent: Checkpoint) -> None:
    blueprint = Blueprint.identity(parent.spec.parent("m"))
    (asked, _) = predictions(recipe(machines=["h100"], weights="fp8"), parent, blueprint)
    assert (asked["parent"].setting.weights, asked["parent"].setting.kv) == ("fp8", "bf16")
    (whole, _) = predictions(recipe(machines=["h100"], kv="fp8"), parent, blueprint)
    assert (whole["parent"].setting.weights, whole["parent"].setting.kv) == ("fp32", "fp8")


def test_a_file_that_describes_a_machine(parent: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "8xmine.yaml").write_text("memory: 1.0e+9\nbandwidth: 1.0e+10\nflops: {fp32: 1.0e+11}\n")
    asked = recipe(machines=["8xmine.yaml", "1x8xmine.yaml", "h100", "2xh100"]).resolved(tmp_path)
    file = str((tmp_path / "8xmine.yaml").resolve())
    assert asked.predict.machines == (file, f"1x{file}", "h100", "2xh100")
    found = [(machine.name, count) for machine, count in places(asked)]
    assert found == [("8xmine", 1), ("8xmine", 1), ("h100", 1), ("h100", 2)]


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ("h1000", "'h1000' isn't known"),
        ("9xh100", "9 devices"),
        ("2xrtx4090", "2 devices"),
        ("nowhere.yaml", "nowhere"),
    ],
)
def test_what_cannot_be_modelled_is_said_before_anything(machine: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preflight(recipe(machines=[machine]), ALL)


def test_heads_that_cannot_be_shared(parent: Checkpoint) -> None:
    first, *others = parent.spec.blocks
    odd = replace(parent.spec, blocks=(replace(first, attention=AttentionSpec("attention", 1, 3)), *others))

    class Odd:
        spec, dtype = odd, "F32"

    with pytest.raises(UsageError, match="3 heads can't be shared"):
        check_places(recipe(machines=["2xh100"]), Odd())  # type: ignore[arg-type]
    check_places(recipe(machines=["2xh100"]), parent)
    with pytest.raises(RecipeError, match=r"predict\.weights"):
        recipe(weights="q4_0")
