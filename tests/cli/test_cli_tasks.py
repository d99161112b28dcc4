"""Tasks on the command line: ``eval --tasks``, and a recipe's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import command, forked_together
from huggingface_hub import ModelCard
from tiny import tiny_text
from toy_task import examples, write_task

from ffn_fusion.evaluation.quality import Quality

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path, examples(12))


@pytest.fixture
def child(ffn_fusion: Run, parent: Path, tmp_path: Path) -> Path:
    code, _, err = ffn_fusion("fuse", parent, "--without-attention", "2-4", "--runs", "2-3", "-o", tmp_path / "child")
    assert code == 0, err
    return tmp_path / "child"


def test_eval(ffn_fusion: Run, parent: Path, child: Path, task: Path, tmp_path: Path) -> None:
    asked = ("eval", child, "--parent", parent, "--tasks", task)
    code, out, err = ffn_fusion(*asked, "--tasks-only", "--dry-run")
    assert (code, "after" in out, "48" in out) == (0, True, True), err
    plan = json.loads(ffn_fusion(*asked, "--dry-run", "--json")[1])
    assert (plan["tasks"][0]["examples"], plan["tasks"][0]["requests"], plan["models"]) == (12, 48, 2)
    code, out, err = ffn_fusion(*asked, "--tasks-only", "-o", tmp_path / "kept", "--json")
    assert code == 0, err
    quality = Quality.model_validate_json(out)
    assert (quality.texts, quality.models) == ((), ("parent", "child"))
    scores = quality.tasks[0]
    assert (scores.task, scores.metric, scores.examples) == ("after", "acc", 12)
    code, out, err = ffn_fusion(*asked, "--tasks-only", "-o", tmp_path / "kept")
    assert code == 0, err
    shown = scores.scores["parent"]
    assert f"{shown.score:.4f} ± {shown.error:.4f}" in out
    assert re.search(r"after, 12 examples\s+acc ↑ +parent", out)
    text = tiny_text(tmp_path / "held-out.txt")
    words = ("--text", text, "--tokens", 96, "--context", 32, "--task-examples", 5)
    code, out, err = ffn_fusion(*asked, *words, "--json")
    assert code == 0, err
    both = Quality.model_validate_json(out)
    assert (both.texts[0].windows, both.tasks[0].examples) == (3, 5)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--tasks-only",), 2, "no tasks to score on"),
        (("--tasks", "gone.yaml"), 7, "gone.yaml: no such file"),
        (("--tasks", "after.yaml", "--few-shot", "-1"), 2, "--few-shot"),
        (("--tasks", "after.yaml", "--task-examples", "0"), 2, "--task-examples"),
        (("--tasks", "after.yaml", "--memory", "1MiB", "--tasks-only"), 2, "of memory is too little"),
        (("--tasks", "after.yaml,after.yaml"), 2, "named twice"),
    ],
)
def test_mistakes(
    ffn_fusion: Run, parent: Path, child: Path, task: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(task.parent)
    found, out, err = ffn_fusion("eval", child, "--parent", parent, *words)
    assert (found, says in err, out) == (code, True, ""), err


def test_without_the_extra(
    ffn_fusion: Run, parent: Path, child: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffn_fusion.evaluation.task_estimate.find_spec", lambda name: None)
    code, _, err = ffn_fusion("eval", child, "--parent", parent, "--tasks", task)
    assert (code, "ffn-fusion[tasks]" in err) == (9, True)


def test_a_recipe_with_tasks(ffn_fusion: Run, parent: Path, task: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "model": "parent",
        "output": "out",
        "calibration": {"texts": [tiny_text(tmp_path / "c.txt").name], "tokens": 128, "context": 32},
        "analysis": {"max_run": 4, "scores": ["attention"], "repair": False},
        "plan": {"without_attention": "2-4", "runs": "2-3"},
        "repair": {"enabled": False},
        "evaluation": {
            "texts": [tiny_text(tmp_path / "e.txt", start=3).name], "tokens": 128, "context": 32,
            "controls": False, "tasks": [task.name],
        },
        "bench": {"enabled": False},
        "samples": {"prompts": ["word1"], "new_tokens": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, out, err = ffn_fusion("run", tmp_path / "recipe.yaml", "--dry-run")
    assert code == 0, err
    assert re.search(r"after +12 +0 +48", err)
    code, out, err = ffn_fusion("run", tmp_path / "recipe.yaml", "--json")
    assert code == 0, err
    scores = Quality.model_validate(json.loads(out)["quality"]).tasks[0]
    assert tuple(scores.scores) == ("parent", "pruned", "fused")
    assert "after, 12 examples" in (tmp_path / "out.run" / "report.html").read_text(encoding="utf-8")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    told, _ = card.data.eval_results
    assert (told.metric_type, told.metric_value, told.dataset_name) == ("acc", scores.scores["fused"].score, "after")
    code, out, err = ffn_fusion("run", tmp_path / "recipe.yaml")
    assert (code, "tasks: done already" in err, "12 examples" in out) == (0, True, True)
    recipe["evaluation"]["task_examples"] = 6
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, out, err = ffn_fusion("run", tmp_path / "recipe.yaml")
    assert (code, "evaluate: done already" in err, "6 examples" in out) == (0, True, True), err
    assert "tasks: done already" not in err


@pytest.mark.slow
def test_two_processes(ffn_fusion: Run, parent: Path, child: Path, task: Path) -> None:
    asked = ("eval", child, "--parent", parent, "--tasks", task, "--tasks-only", "--json", "--device", "cpu")
    alone = Quality.model_validate_json(ffn_fusion(*asked)[1])
    first, second = forked_together(2, command(*asked))
    assert (first.wait(), second.wait()) == (0, 0), first.stderr + second.stderr
    assert Quality.model_validate_json(first.stdout) == alone
    assert second.stdout == ""
