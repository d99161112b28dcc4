"""How models do on tasks: the tables for all renderers, and the metadata on a model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ffn_fusion.report.formats import Measured, task_difference, task_score
from ffn_fusion.report.grid import MODEL, Column, Grid, words
from ffn_fusion.units import gib

if TYPE_CHECKING:
    from ffn_fusion.evaluation.quality import TaskScore, TaskScores
    from ffn_fusion.evaluation.task_estimate import TasksEstimate


def tasks_grid(tasks: Sequence[TaskScores]) -> Grid:
    """Every model on every task, or on the group that it's a part of."""
    shown = [task for task in tasks if task.group is None]
    rows = [(task, name, score) for task in shown for name, score in task.scores.items()]
    return Grid.of(
        rows,
        (words("task"), lambda row: _title(row[0])),
        (words("metric"), lambda row: f"{row[0].metric} {'↑' if row[0].higher_is_better else '↓'}"),
        (MODEL, lambda row: row[1]),
        (Column("score", task_score), lambda row: _measured(row[2].score, row[2].error)),
        (Column("minus parent", task_difference), lambda row: _minus(row[2])),
        notes=[
            "± is the standard error over examples; minus parent is taken example by example.",
            "The tasks of a group by themselves: tasks.json, or --json." if len(shown) < len(tasks) else "",
        ],
        grouped=True,
    )


def _title(task: TaskScores) -> str:
    shots = f", {task.few_shot}-shot" if task.few_shot else ""
    return f"{task.task}, {task.examples:,} examples{shots}"


def _measured(value: float, error: float | None) -> float | Measured:
    return value if error is None else Measured(value, error)


def _minus(score: TaskScore) -> float | Measured | None:
    return None if score.difference is None else _measured(score.difference, score.difference_error)


def tasks_estimate_grid(plan: TasksEstimate) -> Grid:
    """What each task takes for one model."""
    return Grid.of(
        plan.tasks,
        (words("task"), lambda task: task.task),
        (Column("examples"), lambda task: task.examples),
        (Column("solved before each"), lambda task: task.few_shot),
        (Column("requests"), lambda task: task.requests),
        (Column("tokens"), lambda task: task.tokens),
        (Column("longest request"), lambda task: task.longest),
        notes=[
            f"For each of {plan.models} models: {plan.tokens:,} tokens in all, {plan.batch} requests at a time, "
            f"peak memory about {gib(plan.peak_memory)}."
        ],
    )


def model_index(name: str, tasks: Sequence[TaskScores], model: str) -> list[dict[str, Any]]:
    """Return a model's scores as ``model-index``, the hub's metadata of evaluation results on a model card.

    Args:
        name: the model's own name.
        model: what it is called in the scores.
    """
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task.dataset or task.task,
            dataset_name=task.task,
            dataset_args={"examples": task.examples, "num_few_shot": task.few_shot},
            metric_type=task.metric.partition(",")[0],
            metric_name=f"{task.metric}, {task.few_shot}-shot" + _plus_minus(task.scores[model]),
            metric_value=task.scores[model].score,
        )
        for task in tasks
        if task.group is None and model in task.scores
    ]
    return eval_results_to_model_index(name, results)


def _plus_minus(score: TaskScore) -> str:
    return "" if score.error is None else f", standard error {score.error:.3g}"
