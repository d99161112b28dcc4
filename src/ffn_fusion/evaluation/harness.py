"""The lm-evaluation-harness as it is used here: open tasks, and have a model in memory carry one out.

Prompts, metrics and their aggregation are the harness's own, by its own ``evaluate``, and so is the model class, so
that figures are those of a plain call of it. Importing this module takes seconds: import it where tasks are scored.
"""

from __future__ import annotations

import difflib
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # read once: metrics that are code on the hub aren't fetched

import datasets
import numpy as np
import torch
from lm_eval.api.metrics import mean
from lm_eval.api.registry import metric_registry
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ffn_fusion.errors import CheckpointError, DataError, FfnFusionError, UsageError, printable
from ffn_fusion.evaluation.settings import TaskSettings
from ffn_fusion.evaluation.task_files import check_templates, read_task, task_files
from ffn_fusion.evaluation.task_results import standard_error
from ffn_fusion.processes import FailedElsewhereError, Processes

_RESAMPLES = 200  # of the bootstrap, which gives the error of metrics that aren't means


@dataclass(frozen=True)
class Tasks:
    """Tasks of the harness by name, ready to be carried out, and the groups that they were asked for by."""

    each: Mapping[str, Any]
    groups: Mapping[str, Any]

    def group_of(self, name: str) -> str | None:
        """Return the group that a task or a group is directly in."""
        return next((group for group, found in self.groups.items() if name in found), None)


def open_tasks(settings: TaskSettings) -> Tasks:
    """Open tasks with their data.

    Raises:
        UsageError: no such task, or two of one name. DataError: a task's file or its data can't be used.
    """
    names = [entry for entry in settings.tasks if isinstance(entry, str)]
    manager = _built_in() if names else TaskManager(include_defaults=False)
    each: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for entry in settings.tasks:
        if isinstance(entry, str):
            loaded = _named(manager, entry)
            found = dict(loaded["tasks"])
            groups |= loaded["groups"]
        else:
            opened = [_from_file(path) for path in task_files(entry)]
            found = {task.task_name: task for task in opened}
            if len(found) < len(opened):
                raise UsageError(f"{entry}: two tasks of the same name", "rename one")
        if twice := found.keys() & each.keys():
            raise UsageError(f"task {min(twice)} is named twice", "name every task once")
        each |= found
    for name, task in each.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            what = "runs code that the model writes" if getattr(task, "UNSAFE_CODE", False) else "is not of text alone"
            raise UsageError(f"task {name} {what}", "carry it out by the lm-evaluation-harness itself")
        own = task.get_config("num_fewshot")  # a task that says 0 keeps it, as in the harness
        if own is None or (own and settings.few_shot is not None):
            task.set_config("num_fewshot", settings.few_shot or 0)
    return Tasks(each, groups)


def requests_of(task: Any, settings: TaskSettings, seed: int) -> list[Any]:
    """Make the requests of a task: each with ``args``, ``request_type`` and ``doc_id``."""
    with _one_line(f"task {task.task_name}"), _quiet():
        task.set_fewshot_seed(seed)
        task.build_all_requests(limit=settings.task_examples, rank=0, world_size=1)
    return list(task.instances)


class Answers(HFLM):
    """The harness's own model of transformers, which shares requests among processes and reports every answer.

    Args:
        model: any causal model of transformers.
        name: what it is called in errors.
        on_answer: called with how many more requests of this process are answered.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, batch: int, here: Processes, on_answer: Callable[[int], None]
    ) -> None:
        with _quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
        self._name, self._here, self._told = name, here, on_answer
        self.set_cache_hook(self)

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Hear one answer, as the harness's cache of answers does."""
        self._told(1)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        return self._shared(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        return self._shared(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        return self._shared(super().generate_until, requests)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _shared(self, answer: Callable[..., list[Any]], requests: Sequence[Any]) -> list[Any]:
        mine = list(requests[self._here.share(len(requests))])
        with redirect_stderr(self._stderr):
            found = self._here.gather(answer(mine, disable_tqdm=True) if mine else [])
        if not all(math.isfinite(_number(one)) for one in found):
            raise CheckpointError(
                f"{self._name}: log-likelihoods that aren't finite", "check the weights: ffn-fusion check"
            )
        return found

    def carry_out(self, task: Any, settings: TaskSettings, seed: int) -> Mapping[str, Any]:
        """Carry out a task by the harness's ``evaluate``."""
        self._stderr = sys.stderr
        gpus = [self.device] if self.device.type == "cuda" else []
        with _one_line(f"task {task.task_name}"), _quiet(), torch.random.fork_rng(gpus):
            torch.manual_seed(seed)
            task.set_fewshot_seed(seed)
            found = evaluate(
                self, {"tasks": {task.task_name: task}, "groups": {}}, limit=settings.task_examples, bootstrap_iters=0
            )
        assert found is not None
        return dict(found)


def metrics_of(task: Any, found: Mapping[str, Any]) -> Iterator[tuple[str, bool, float, float | None, list[float]]]:
    """Read what ``Answers.carry_out`` found: name, higher is better, score, standard error and values of each metric.

    The standard error is that of a mean, sample deviation / sqrt(n), or a bootstrap's. Values are those of the examples
    in their order; there are none unless the score is their mean.

    Raises:
        DataError: a score that isn't a finite number, or none.
    """
    name, empty = task.task_name, True
    better = found["higher_is_better"][name]
    for key, score in found["results"][name].items():
        metric, comma, answers = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if not isinstance(score, int | float | np.number) or not math.isfinite(score):
            raise DataError(f"task {name}: {metric} is {score!r}, not a finite number", "leave the task out")
        items = [one[metric] for one in found["samples"][name] if one["filter"] == answers and metric in one]
        aggregate = task.aggregation().get(metric, mean)
        values = [float(item) for item in items] if aggregate is mean and all(map(_scalar, items)) else []
        error = standard_error(values) if values else _bootstrap(aggregate, items)
        shown = metric if answers == "none" else f"{metric}, {answers}"
        yield shown, better.get(metric) is not False, float(score), error, values
        empty = False
    if empty:
        raise DataError(f"task {name}: no score", "its file must name metrics in metric_list")


def _bootstrap(aggregate: Callable[[list[Any]], float], items: list[Any]) -> float | None:
    """Estimate the standard error of any statistic by drawing as many examples again, with replacement."""
    if len(items) < 2:
        return None
    draws = np.random.default_rng(0).integers(len(items), size=(_RESAMPLES, len(items)))
    try:
        with _quiet(), np.errstate(all="ignore"):
            found = np.array([aggregate([items[k] for k in draw]) for draw in draws], dtype=float)
    except (ValueError, ZeroDivisionError):  # of too few kinds of answers in a draw
        return None
    return float(found.std(ddof=1)) if np.isfinite(found).all() else None


def _scalar(item: Any) -> bool:
    return isinstance(item, bool | int | float | np.number)


def _number(answer: Any) -> float:
    """Return the log-likelihood of an answer; 0 for text."""
    value = answer[0] if isinstance(answer, tuple | list) else answer
    return float(value) if _scalar(value) else 0.0


@cache
def _built_in() -> Any:
    """Read the index of the harness's own tasks: thousands of files, some 15 seconds."""
    return TaskManager()


def _named(manager: Any, name: str) -> Any:
    if name not in manager.task_index:
        close = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "list them: lm-eval ls tasks"
        raise UsageError(f"the lm-evaluation-harness has no task {name!r}", f"{hint} A file of yours: ./{name}.yaml")
    with _one_line(f"task {name}"), _quiet():
        return manager.load([name])


def _from_file(path: Path) -> Any:
    config = read_task(path, set(metric_registry.keys()))
    with _one_line(str(path)), _quiet():
        data = datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), **config["dataset_kwargs"])
        check_templates(str(path), config, _examples(data, config))
        opened = TaskManager(include_defaults=False).load([{**config, "custom_dataset": lambda **_: data}])
    return opened["tasks"][config["task"]]


def _examples(data: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for split in data.values():
        yield from split
    shots = config.get("fewshot_config") or {}
    yield from (shots.get("samples") or () if isinstance(shots, Mapping) else ())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's words and bars, which have no switch, off the terminal."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _one_line(place: str) -> Iterator[None]:
    """Convert errors of the harness and of a task's own code, which are of any kind, to one line."""
    try:
        yield
    except (FfnFusionError, FailedElsewhereError):
        raise
    except Exception as error:
        if type(error) is RuntimeError or isinstance(error, torch.OutOfMemoryError):
            raise  # torch's, or another process's
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise DataError(f"{place}: {type(error).__name__}: {printable(said)}", _hint(error)) from error


def _hint(error: Exception) -> str:
    if isinstance(error, ConnectionError) or "Offline" in str(error):
        return "its data aren't on this disk and the hub can't be reached: fetch them where it can be"
    return "correct the task's file or its data"
