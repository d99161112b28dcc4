"""What tasks take: examples, requests and tokens, and how many requests at a time memory allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.stack import parameters
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.compute import compute_dtype
from ffn_fusion.errors import DataError, MissingExtraError
from ffn_fusion.evaluation.quality import PARENT
from ffn_fusion.evaluation.settings import TaskSettings
from ffn_fusion.surgery.child import Child

if TYPE_CHECKING:
    from ffn_fusion.evaluation.harness import Tasks

Model = Checkpoint | Child


@dataclass(frozen=True)
class TaskEstimate:
    """What one task takes for each model. ``tokens``: of all requests; ``longest``: of one."""

    task: str
    examples: int
    few_shot: int
    requests: int
    tokens: int
    longest: int


@dataclass(frozen=True)
class TasksEstimate:
    """What tasks take, on each of several processes.

    Args:
        batch: requests at a time, as many as memory allows.
        peak_memory: of the largest model.
    """

    tasks: tuple[TaskEstimate, ...]
    models: int
    batch: int
    peak_memory: int

    @property
    def tokens(self) -> int:
        """Tokens of all requests to all models."""
        return self.models * sum(task.tokens for task in self.tasks)


def check_extra() -> None:
    """Check that the harness is installed. Raises: MissingExtraError."""
    for package in ("lm_eval", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtraError(f"tasks need {package}", "pip install 'ffn-fusion[tasks]'")


def check_tasks(settings: TaskSettings) -> Tasks:
    """Open the tasks with their data, and return them.

    Raises:
        MissingExtraError: the harness isn't installed. UsageError: no such task. DataError: a task's file or data can't
            be used.
    """
    check_extra()
    from ffn_fusion.evaluation.harness import open_tasks

    return open_tasks(settings)


def estimate_tasks(
    models: Mapping[str, Model],
    settings: TaskSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    memory: int | None = None,
) -> TasksEstimate:
    """Count the examples, requests and tokens of tasks, and choose the batch that memory allows.

    Args:
        memory: bytes that a process may use; None: half of the free memory.

    Raises:
        UsageError: a model needs more memory. DataError: an example that can't be asked.
    """
    opened = check_tasks(settings)
    tokenizer = load_tokenizer(folder_of(models[PARENT]))
    each = tuple(_count(task, settings, seed, tokenizer) for task in opened.each.values())
    longest = max(task.longest for task in each)
    needs = {name: _memory(model, dtype_of(model, device), longest) for name, model in models.items()}
    name, (weights, file, request) = max(needs.items(), key=lambda need: sum(need[1]))
    room = Room.here(torch.device(device), None, memory)

    def peak(batch: int) -> int:
        return room.peak(weights + max(file, batch * request))  # the file is closed before the first request

    most = next((batch for batch in range(settings.task_batch, 1, -1) if peak(batch) <= room.budget), 1)
    if peak(most) > room.budget:
        hint = "raise --memory, or score on a device with more; tasks need each model in memory"
        raise room.too_little(f"scoring {name} on tasks", peak(most), "for its weights and one request", hint)
    return TasksEstimate(each, len(models), most, peak(most))


def _count(task: Any, settings: TaskSettings, seed: int, tokenizer: Any) -> TaskEstimate:
    from ffn_fusion.evaluation.harness import requests_of

    requests = requests_of(task, settings, seed)
    lengths = []
    for request in requests:
        context, *more = request.args
        text = context + more[0] if request.request_type == "loglikelihood" else context
        lengths.append(len(tokenizer(text)["input_ids"]))
        if request.request_type == "loglikelihood" and not more[0].strip():
            raise DataError(f"task {task.task_name}: example {request.doc_id} has an empty answer", "correct its data")
        if request.request_type == "generate_until":
            lengths[-1] += int((more[0] or {}).get("max_gen_toks", 256))
    return TaskEstimate(
        task.task_name,
        len({request.doc_id for request in requests}),
        task.get_config("num_fewshot") or 0,
        len(requests),
        sum(lengths),
        max(lengths),
    )


def _memory(model: Model, dtype: torch.dtype, tokens: int) -> tuple[int, int, int]:
    """Return the bytes of a model's weights, of the file that they're read from, and of a request of ``tokens`` tokens:
    its logits twice, and one FFN."""
    widest = max((block.ffn_width for block in model.spec.blocks), default=0)
    file = (model.parent if isinstance(model, Child) else model).nbytes
    return parameters(model) * dtype.itemsize, file, tokens * dtype.itemsize * (2 * model.spec.vocab_size + 3 * widest)


def dtype_of(model: Model, device: str) -> torch.dtype:
    return compute_dtype("auto", model.parent if isinstance(model, Child) else model, device)


def folder_of(model: Model) -> Path:
    return model.parent.folder if isinstance(model, Child) else model.folder
