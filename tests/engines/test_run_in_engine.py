"""A run whose models are timed in an engine of their own, and whose plan is limited by what was measured there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from llama_cpp import pretended_programs
from tiny import tiny_model, tiny_text

from ffn_fusion.checkpoint.random_model import write_byte_tokenizer
from ffn_fusion.errors import CheckError, MissingExtraError, UsageError
from ffn_fusion.latency.width_curve import WidthCurve
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.run import run


class Stages(Listener):
    """Which stages were done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def stage(self, name: str, number: int, total: int) -> None:
        self.done.append(name)


def write_recipe(folder: Path, bench: dict[str, object], **changes: object) -> Path:
    tiny_model(folder / "parent")
    write_byte_tokenizer(folder / "parent")
    recipe = {
        "model": "parent",
        "output": "child",
        "calibration": {"texts": [tiny_text(folder / "c.txt").name], "tokens": 256, "context": 32},
        "plan": {"drop_attention": 2, "fuse": 1, "max_damage": 100},
        "repair": {"enabled": False},
        "build": {"width_multiple": 1},
        "evaluation": {"texts": [tiny_text(folder / "e.txt", start=3).name], "tokens": 128, "context": 32},
        "bench": {"batches": [1, 2], "contexts": [8], "new_tokens": 2, "rounds": 2, **bench},
        "samples": {"prompts": ["word1 word2"], "new_tokens": 4},
    } | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.mark.usefixtures("figures_left_out")
def test_models_and_widths_are_timed_where_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFN_FUSION_CACHE", str(tmp_path / "cache"))
    program = pretended_programs(tmp_path / "bin")
    path = write_recipe(tmp_path, {"engine": "llama.cpp", "engine_program": "bin/llama-bench"})
    result = run(Recipe.load(path))
    assert result.latency is not None
    assert result.latency.engine == "llama.cpp"
    assert result.latency.models == ("parent", "pruned", "fused")
    assert result.latency.batches == (1, 2)
    curve = WidthCurve.load(result.workspace.widths)
    assert (curve.engine, curve.batches) == ("llama.cpp", (1, 2))
    calls = [json.loads(line)["-m"] for line in (program.parent / "calls.jsonl").read_text().splitlines()]
    timed = {Path(call).name.split("-float32")[0] for call in calls if ".bench" in call}
    assert {name.split("-")[0] for name in timed} == {"parent", "pruned", "child"}
    assert not result.workspace.benched.exists()
    assert not (tmp_path / "cache").exists()
    kept = Recipe.load(result.workspace.recipe)
    assert kept.plan.for_engines == ("llama.cpp",)

    again = Stages()
    run(Recipe.load(path), listener=again)
    assert again.done == []
    elsewhere = Recipe.load(path)
    moved = elsewhere.model_copy(update={"bench": elsewhere.bench.model_copy(update={"engine": "transformers"})})
    third = Stages()
    run(moved, listener=third)
    assert {"widths", "bench", "report"} <= set(third.done)
    assert "analyze" not in third.done


def test_an_engine_that_is_not_there_is_known_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_BENCH", raising=False)
    monkeypatch.delenv("FFN_FUSION_VLLM_PYTHON", raising=False)
    path = write_recipe(tmp_path, {"engine": "llama.cpp"})
    with pytest.raises(MissingExtraError, match="llama-bench"):
        run(Recipe.load(path))
    with pytest.raises(UsageError, match="nowhere isn't a program"):
        run(Recipe.load(write_recipe(tmp_path, {"engine": "vllm", "engine_program": "nowhere"})))
    assert not (tmp_path / "child.run").exists()


def test_what_the_engine_cannot_load_is_not_planned(tmp_path: Path) -> None:
    """llama.cpp takes a model's first block for one with attention."""
    pretended_programs(tmp_path / "bin")
    bench = {"engine": "llama.cpp", "engine_program": "bin/llama-bench"}
    path = write_recipe(tmp_path, bench, plan={"without_attention": "0-1", "runs": "0-1"})
    with pytest.raises(CheckError, match=r"llama\.cpp"):
        run(Recipe.load(path))
    assert not (tmp_path / "child.run").exists()
