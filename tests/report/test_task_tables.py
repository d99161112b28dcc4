"""Scores on tasks: the table, the report and the hub's metadata on a model card."""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from ffn_fusion.evaluation.quality import Quality, TaskScore, TaskScores
from ffn_fusion.evaluation.task_estimate import TaskEstimate, TasksEstimate
from ffn_fusion.report.grid import markdown
from ffn_fusion.report.html import render_report
from ffn_fusion.report.model_card import model_card
from ffn_fusion.report.task_grids import model_index, tasks_estimate_grid, tasks_grid


def scores(task: str, metric: str = "acc", size: float = 1.0, **about: Any) -> TaskScores:
    each = {
        "parent": TaskScore(score=0.85 * size, error=0.02 * size),
        "pruned": TaskScore(score=0.8 * size, error=None, difference=-0.05 * size, difference_error=0.01 * size),
        "fused": TaskScore(score=0.9 * size, error=0.02 * size, difference=0.05 * size),
    }
    about = {"higher_is_better": True, "examples": 1234, "few_shot": 5} | about
    return TaskScores(task=task, metric=metric, scores=each, **about)


TASKS = (
    scores("mmlu", dataset="cais/mmlu"),
    scores("mmlu_law", group="mmlu"),
    scores("words", "word_perplexity", 20, higher_is_better=False, few_shot=0),
)


def test_table() -> None:
    rows = tasks_grid(TASKS).texts
    assert rows[0] == ("mmlu, 1,234 examples, 5-shot", "acc ↑", "parent", "0.8500 ± 0.0200", "–")  # noqa: RUF001
    assert rows[1][1:] == ("acc ↑", "pruned", "0.8000", "−0.0500 ± 0.0100")  # noqa: RUF001
    assert rows[2][1:] == ("acc ↑", "fused", "0.9000 ± 0.0200", "+0.0500")
    assert rows[3] == ("words, 1,234 examples", "word_perplexity ↓", "parent", "17.00 ± 0.40", "–")  # noqa: RUF001
    assert rows[5][4] == "+1.0000"
    assert "mmlu_law" not in markdown(tasks_grid(TASKS))
    assert "by themselves" in tasks_grid(TASKS).notes[-1]


def test_table_of_a_plan() -> None:
    plan = TasksEstimate((TaskEstimate("mmlu", 10, 5, 40, 4000, 300),), models=3, batch=8, peak_memory=3 << 30)
    assert tasks_estimate_grid(plan).texts == [("mmlu", "10", "5", "40", "4,000", "300")]
    assert "3 models: 12,000 tokens" in tasks_estimate_grid(plan).notes[0]


def test_metadata_as_the_hub_reads_it(small: Any) -> None:
    quality = small.quality.model_copy(update={"tasks": TASKS})
    card = ModelCard(model_card("child", small.blueprint, "0.1.0", quality=quality))
    assert isinstance(card.data, ModelCardData)
    assert card.data.model_name == "child"
    first, second = card.data.eval_results or []
    assert (first.dataset_type, first.dataset_name, first.metric_type) == ("cais/mmlu", "mmlu", "acc")
    assert (first.metric_value, first.task_type) == (0.9, "text-generation")
    assert first.dataset_args == {"examples": 1234, "num_few_shot": 5}
    assert "standard error 0.02" in first.metric_name
    assert (second.dataset_type, second.metric_value) == ("words", 18)
    name, again = model_index_to_eval_results(yaml.safe_load(yaml.safe_dump(model_index("child", TASKS, "fused"))))
    assert (name, again) == ("child", [first, second])
    assert "| mmlu, 1,234 examples, 5-shot | acc ↑ | parent |" in card.text
    assert "model-index" not in model_card("child", small.blueprint, "0.1.0", quality=small.quality)
    alone = Quality(texts=(), tasks=TASKS)
    assert "perplexity increase" not in model_card("child", small.blueprint, "0.1.0", quality=alone)


def test_report(small: Any, figures_left_out: None) -> None:
    quality = small.quality.model_copy(update={"tasks": TASKS})
    assert "mmlu, 1,234 examples, 5-shot" in render_report(small.report(quality=quality))
    assert "<h3>Tasks</h3>" not in render_report(small.report())
