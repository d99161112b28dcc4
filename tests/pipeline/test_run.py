"""The main job on a tiny model: what it leaves, how it resumes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import pytest
import torch
import yaml
from forks import forked
from makers import tree_sha256
from tiny import tiny_model, tiny_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffn_fusion.checkpoint.staging import Staging, mismatches
from ffn_fusion.errors import BlueprintError, CheckError, DataError, OutputError, RecipeError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.width_curve import WidthCurve, WidthPoint
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.run import republish, run
from ffn_fusion.pipeline.stages import STAGES
from ffn_fusion.surgery import build as builder

CARD = "README.md"


def write_recipe(folder: Path, **changes: object) -> Path:
    """A parent, texts and a recipe that takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(folder / "parent")
    recipe = {
        "model": "parent",
        "output": "child",
        "calibration": {"texts": [tiny_text(folder / "c.txt").name], "tokens": 128, "context": 32},
        "analysis": {"candidate_share": 1.0, "max_run": 4},
        "plan": {"drop_attention": 4, "fuse": 1, "max_damage": 100},
        "repair": {"tokens": 256, "context": 32, "horizon": 1},
        "build": {"max_shard_bytes": 1 << 20},
        "evaluation": {"texts": [tiny_text(folder / "e.txt", start=3).name], "tokens": 128, "context": 32},
        "bench": {"batches": [1], "contexts": [8], "new_tokens": 2, "rounds": 2},
        "samples": {"prompts": ["word1 word2"], "new_tokens": 4},
    } | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


class Stages(Listener):
    """Which stages were done, and which skipped."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.left: list[str] = []

    def stage(self, name: str, number: int, total: int) -> None:
        self.done.append(name)

    def skipped(self, name: str) -> None:
        self.left.append(name)


ALL = ["analyze", "widths", "plan", "repair", "build", "evaluate", "bench", "samples", "report"]


def test_the_whole_job(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    before = tree_sha256(tmp_path / "parent")
    stages = Stages()
    result = run(recipe, listener=stages)
    assert stages.done == ALL
    assert tree_sha256(tmp_path / "parent") == before
    child, space = tmp_path / "child", tmp_path / "child.run"
    assert not mismatches(child)
    assert not list(tmp_path.glob("*.partial"))

    model = AutoModelForCausalLM.from_pretrained(child)
    ids = AutoTokenizer.from_pretrained(child)("word1 word2", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()

    assert result.quality is not None
    assert result.quality.models[:3] == ("parent", "pruned", "fused")
    scores = result.quality.texts[0].scores
    assert scores["parent"].kl == 0
    assert scores["parent"].agreement == 1
    assert scores["fused"].kl > 0
    assert result.quality.models[3] == "unrepaired"
    assert "Repaired" in (child / CARD).read_text()
    assert json.loads((child / "repairs.json").read_text())["places"]
    assert result.latency is not None
    assert {t.phase for t in result.latency.timings} == {"prefill", "decode"}
    page = (space / "report.html").read_text()
    assert "Engines</h2>" in page
    assert "<svg" in page
    assert not re.search(r'(src|href)="https?://', page)
    card = (child / CARD).read_text()
    assert card.startswith("---\n")
    assert "perplexity" in card.lower()

    # Again: nothing to do. A changed bench: just that and the report.
    again = Stages()
    run(recipe, listener=again)
    assert (again.done, again.left) == ([], ALL)
    changed = recipe.model_copy(update={"bench": recipe.bench.model_copy(update={"rounds": 3})})
    third = Stages()
    run(changed, listener=third)
    assert third.done == ["bench", "report"]

    (space / "report.html").unlink()
    republish(child)
    assert (space / "report.html").is_file()


@pytest.mark.usefixtures("figures_left_out")
def test_dry_run_stops_with_the_plan(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    result = run(recipe, dry_run=True)
    assert result.quality is None
    assert result.plan.blueprint.runs
    assert not (tmp_path / "child").exists()
    stages = Stages()
    run(recipe, listener=stages)
    assert stages.left == ["analyze", "widths", "plan"]


@pytest.mark.usefixtures("figures_left_out")
def test_explicit_runs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, plan={"without_attention": "2-4", "runs": "1-3"}, bench={"enabled": False})
    result = run(Recipe.load(path))
    assert result.plan.blueprint.dropped_attentions == (2, 3, 4)
    assert result.plan.blueprint.runs == ((1, 3),)
    assert result.latency is None


def test_refusals(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    recipe = Recipe.load(path)
    (tmp_path / "child").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        run(recipe)
    (tmp_path / "child").rmdir()
    with pytest.raises(OutputError, match="in one another"):
        run(recipe.model_copy(update={"output": tmp_path / "parent" / "inside"}))
    with pytest.raises(DataError, match="no such file"):
        run(
            recipe.model_copy(
                update={"calibration": recipe.calibration.model_copy(update={"texts": (tmp_path / "x",)})}
            )
        )
    with pytest.raises(BlueprintError, match="keeps its attention"):
        run(recipe.model_copy(update={"plan": recipe.plan.model_copy(update={"runs": ((1, 2),)})}))
    with pytest.raises(BlueprintError, match="can't be dropped"):
        run(recipe.model_copy(update={"plan": recipe.plan.model_copy(update={"drop_attention": 40})}))
    with pytest.raises(DataError, match="no finished run"):
        republish(tmp_path / "elsewhere")


@pytest.mark.usefixtures("figures_left_out")
def test_a_changed_plan_never_overwrites_the_child(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path, bench={"enabled": False}))
    run(recipe)
    before = tree_sha256(tmp_path / "child")
    other = recipe.model_copy(update={"plan": recipe.plan.model_copy(update={"drop_attention": 3})})
    with pytest.raises(OutputError, match="another plan"):
        run(other)
    assert tree_sha256(tmp_path / "child") == before


def die(*_: object, **__: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def run_killed(recipe: Path, place: str, told: Path) -> None:
    """Carry out a recipe; be killed where a stage begins, within the build or right after it."""
    if place == "build":
        patch.object(builder, "child_files", die).start()  # after the weights, before the rest
    elif place == "built":
        commit = Staging.commit
        patch.object(Staging, "commit", lambda self, about: (commit(self, about), die())).start()
    else:
        stages = [replace(stage, work=die) if stage.name == place else stage for stage in STAGES]
        patch("ffn_fusion.pipeline.run.STAGES", stages).start()
    run(Recipe.load(recipe), listener=Telling(told))


class Telling(Listener):
    """Writes down which stages began."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage(self, name: str, number: int, total: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{name}\n")


@pytest.mark.slow
@pytest.mark.usefixtures("figures_left_out")
def test_killed_in_every_stage_and_resumed(tmp_path: Path) -> None:
    """One job is killed again and again, each time a place further; each time it begins where it was killed."""
    path = write_recipe(tmp_path / "killed")
    places = [*ALL[:5], "built", *ALL[5:]]
    for k, place in enumerate(places):
        told = tmp_path / place
        assert forked(partial(run_killed, path, place, told)).wait() == -signal.SIGKILL
        assert (tmp_path / "killed" / "child").exists() == (k >= places.index("built"))
        begun = ["build" if name == "built" else name for name in places[max(k - 1, 0) : k + 1]]
        assert told.read_text().split() == list(dict.fromkeys(begun))
    stages = Stages()
    run(Recipe.load(path), listener=stages)
    assert stages.done == ["report"]
    run(Recipe.load(write_recipe(tmp_path / "whole")))
    resumed, uninterrupted = (tree_sha256(tmp_path / k / "child") for k in ("killed", "whole"))
    for name in set(resumed) - {CARD, "manifest.json", "blueprint.json"}:  # these name the parent's folder, or times
        assert resumed[name] == uninterrupted[name], name
    assert set(resumed) == set(uninterrupted)
    manifests = [json.loads((tmp_path / k / "child" / "manifest.json").read_text()) for k in ("killed", "whole")]
    weights = [{n: f for n, f in m["files"].items() if n.endswith(".safetensors")} for m in manifests]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "killed").glob("*.partial"))


def test_what_an_engine_cannot_load_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    named = {"without_attention": "0,2", "for_engines": ["vllm"]}
    for folder, plan in (("named", named), ("gelu", {"drop_attention": 2, "for_engines": "vllm"})):
        recipe = write_recipe(tmp_path / folder, plan=plan)
        if folder == "gelu":
            config = tmp_path / folder / "parent" / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "gelu"}))
        with pytest.raises(CheckError, match="vllm can't load"):
            run(Recipe.load(recipe))
        assert not (tmp_path / folder / "child.run").exists()
    loads = run(
        Recipe.load(write_recipe(tmp_path / "loads", plan={"drop_attention": 4, "fuse": 1, "for_engines": "all"})),
        dry_run=True,
    )
    assert 0 not in loads.plan.blueprint.dropped_attentions
    with pytest.raises(RecipeError, match=r"plan.for_engines: no engine 'vlm'"):
        Recipe.load(write_recipe(tmp_path / "typo", plan={"for_engines": ["vlm"]}))


@pytest.mark.parametrize("section", ["calibration", "repair", "evaluation"])
def test_every_text_is_tried_before_anything_is_measured(section: str, tmp_path: Path) -> None:
    """A conversation, and the tiny model's tokenizer has no chat template; then a text of a few words."""
    talk = {"messages": [{"role": "user", "content": "word1 word2 " * 50}]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk) + "\n")
    (tmp_path / "short.txt").write_text("word1 word2 word3")
    for text, words in (("talk.jsonl", "no chat template"), ("short.txt", "too short")):
        named = {section: {"texts": [f"../{text}"], "tokens": 128, "context": 32}}
        with pytest.raises(DataError, match=words):
            run(Recipe.load(write_recipe(tmp_path / text.split(".")[0], **named)))
        assert not (tmp_path / text.split(".")[0] / "child.run").exists()


def test_a_measured_width_limits_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace's recipe says so, and carried out again it gives the same plan without measuring."""
    measured: list[tuple[int, ...]] = []

    def pretended(recipe: Recipe, spec: ModelSpec, progress: object) -> WidthCurve:
        measured.append(recipe.bench.batches)
        points = tuple(
            WidthPoint(width=48 * k, fused=k, batch=1, seconds=1, ratio=1, error=0, bytes_per_second=1) for k in (1, 2)
        )
        about = {"engine": "e", "machine": "m", "device": "cpu", "dtype": "float32", "threads": 1, "rounds": 1}
        return WidthCurve(**about, hidden=32, width=48, points=points, max_width=96)

    monkeypatch.setattr("ffn_fusion.pipeline.stages.measure_widths_for", pretended)
    path = write_recipe(tmp_path, plan={"drop_attention": 6, "fuse": 2, "max_damage": 100})
    first = run(Recipe.load(path), dry_run=True)
    assert all(last - begin == 1 for begin, last in first.plan.blueprint.runs)
    pinned = Recipe.load(first.workspace.recipe)
    assert (pinned.plan.max_width, pinned.plan.width_curve) == (96, "none")
    assert run(pinned, dry_run=True).plan.blueprint == first.plan.blueprint
    assert measured == [(1,)]
    unlimited = write_recipe(
        tmp_path / "u", plan={"drop_attention": 6, "fuse": 2, "max_damage": 100, "width_curve": "none"}
    )
    assert Recipe.load(run(Recipe.load(unlimited), dry_run=True).workspace.recipe).plan.max_width is None
    assert measured == [(1,)]
