"""Results of models on tasks, and their comparison with the parent's on the same examples.

What decides is the difference to the parent, example by example: parent and child mostly fail on the same examples, so
its standard error is far smaller than the errors of two scores measured apart,

    error(child - parent) = sd(c_i - p_i) / sqrt(n)          over the n examples i,

with c_i and p_i what the metric gives for an example (1 or 0 where it is right or wrong).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from ffn_fusion.evaluation.quality import PARENT, TaskScore, TaskScores
from ffn_fusion.settings import Frozen

if TYPE_CHECKING:
    from ffn_fusion.evaluation.harness import Tasks


class TaskResult(Frozen):
    """One model's score by one metric of a task.

    Args:
        error: standard error over examples; None for a single one.
        values: what the metric gives for each example; empty where the score isn't their mean.
    """

    task: str
    metric: str
    higher_is_better: bool
    examples: int
    few_shot: int
    score: float
    error: float | None
    values: tuple[float, ...] = ()


def difference(child: TaskResult, parent: TaskResult) -> tuple[float, float | None]:
    """Return child minus parent on the same examples, and its standard error; None where values aren't known."""
    assert (child.task, child.metric, child.examples) == (parent.task, parent.metric, parent.examples)
    pairs = list(zip(child.values, parent.values, strict=True)) if child.values and parent.values else []
    return child.score - parent.score, standard_error([c - p for c, p in pairs])


def standard_error(values: Sequence[float]) -> float | None:
    """Estimate the standard error of a mean, sample deviation / sqrt(n); None for a single value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def side_by_side(tasks: Tasks, results: Mapping[str, Sequence[TaskResult]]) -> tuple[TaskScores, ...]:
    """Join the results of several models, one of them called "parent": groups first, then their tasks."""
    found = []
    for group in tasks.groups.values():
        found += _group_scores(tasks, group, results)
    for k, parent in enumerate(results[PARENT]):
        each = {name: of[k] for name, of in results.items()}
        scores = {
            name: TaskScore(score=one.score, error=one.error)
            if name == PARENT
            else _minus(one.score, one.error, *difference(one, parent))
            for name, one in each.items()
        }
        dataset = tasks.each[parent.task].DATASET_PATH
        found.append(
            TaskScores(
                **parent.model_dump(include={"task", "metric", "higher_is_better", "examples", "few_shot"}),
                scores=scores,
                group=tasks.group_of(parent.task),
                dataset=dataset if isinstance(dataset, str) and "/" in dataset and not Path(dataset).exists() else None,
            )
        )
    return tuple(found)


def _minus(score: float, error: float | None, difference: float, difference_error: float | None) -> TaskScore:
    return TaskScore(score=score, error=error, difference=difference, difference_error=difference_error)


def _group_scores(tasks: Tasks, group: Any, results: Mapping[str, Sequence[TaskResult]]) -> list[TaskScores]:
    """Aggregate the scores of a group's tasks by the harness's own rule: a mean, weighted by examples or not."""
    members = [task.task_name for task in group.get_all_tasks()]
    found = []
    for rule in group.aggregate_metric_list or ():
        names = {one.metric for one in results[PARENT] if one.task in members}
        for metric in sorted(name for name in names if name.partition(",")[0] == rule.metric):
            of = {
                name: [one for one in all_ if one.task in members and one.metric == metric]
                for name, all_ in results.items()
            }
            parents = of[PARENT]
            counts = [one.examples if rule.weight_by_size else 1 for one in parents]
            shares = [count / sum(counts) for count in counts]
            scores: dict[str, TaskScore] = {}
            for name, ones in of.items():
                score = math.fsum(w * one.score for w, one in zip(shares, ones, strict=True))
                error = _pooled(shares, [one.error for one in ones])
                if name == PARENT:
                    scores[name] = TaskScore(score=score, error=error)
                    continue
                pairs = [difference(one, parent)[1] for one, parent in zip(ones, parents, strict=True)]
                scores[name] = _minus(score, error, score - scores[PARENT].score, _pooled(shares, pairs))
            found.append(
                TaskScores(
                    task=group.name,
                    metric=metric,
                    higher_is_better=parents[0].higher_is_better,
                    examples=sum(one.examples for one in parents),
                    few_shot=parents[0].few_shot,
                    scores=scores,
                    group=tasks.group_of(group.name),
                )
            )
    return found


def _pooled(shares: Sequence[float], errors: Sequence[float | None]) -> float | None:
    """Return the standard error of a weighted mean of independent scores: sqrt(sum (w_i e_i)^2)."""
    known = [error for error in errors if error is not None]
    return math.hypot(*(w * e for w, e in zip(shares, known, strict=True))) if len(known) == len(errors) else None
