"""Scores of models on tasks of the lm-evaluation-harness, of a model in memory or of several beside their parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffn_fusion.checkpoint.notes import Notes
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.evaluation.quality import PARENT, TaskScores
from ffn_fusion.evaluation.settings import TaskSettings
from ffn_fusion.evaluation.task_estimate import Model, check_tasks, dtype_of, estimate_tasks, folder_of
from ffn_fusion.evaluation.task_results import TaskResult, side_by_side
from ffn_fusion.processes import Processes, Progress, current, silent, together
from ffn_fusion.surgery.child import Child

if TYPE_CHECKING:
    from ffn_fusion.evaluation.harness import Tasks


def score_tasks(
    model: Any,
    tokenizer: Any,
    settings: TaskSettings,
    *,
    tasks: Tasks | None = None,
    seed: int = 0,
    name: str = "model",
    batch: int | None = None,
    here: Processes | None = None,
    on_answer: Callable[[int], None] = lambda count: None,
) -> list[TaskResult]:
    """Score a model in memory on tasks: every metric of each, in the order of the tasks.

    Args:
        model: any causal language model of transformers.
        tasks: those of the settings if they are open already (``check_tasks``).
        seed: of the choice of solved examples, and of sampling where a task samples.
        here: processes that call this together, each with the model, to share the requests; None: this one alone.
        on_answer: called with how many more requests are answered.

    Raises:
        CheckpointError: log-likelihoods that aren't finite. DataError: a task without examples or scores.
    """
    opened = tasks or check_tasks(settings)
    from ffn_fusion.evaluation.harness import Answers, metrics_of

    answers = Answers(model, tokenizer, name, batch or settings.task_batch, here or Processes(), on_answer)
    results = []
    for task_name, task in opened.each.items():
        found = answers.carry_out(task, settings, seed)
        count, shots = found["n-samples"][task_name]["effective"], task.get_config("num_fewshot") or 0
        results += [
            TaskResult(
                task=task_name, metric=metric, higher_is_better=better, examples=count, few_shot=shots,
                score=score, error=error, values=tuple(values),
            )
            for metric, better, score, error, values in metrics_of(task, found)
        ]  # fmt: skip
    return results


def score_models(
    models: Mapping[str, Model],
    settings: TaskSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    memory: int | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[TaskScores, ...]:
    """Score models on tasks, one model in memory at a time; several processes share the requests.

    Args:
        models: name -> checkpoint, or child not built yet; one is called "parent".
        memory: bytes that a process may use; None: half of the free memory.
        folder: where the results of each model and task are kept, so that the same call goes on there.

    Raises:
        See ``estimate_tasks`` and ``score_tasks``.
    """
    tasks = check_tasks(settings)
    notes = {
        (m, t): _notes(folder, models[m], tasks.each[t], settings, seed, device) for m in models for t in tasks.each
    }
    missing = {m: tuple(t for t in tasks.each if not notes[m, t].found) for m in models}
    if any(missing.values()):
        plan = estimate_tasks(models, settings, seed=seed, device=device, memory=memory)
        requests = {task.task: task.requests for task in plan.tasks}

        def keep(model: str, task: str, results: list[TaskResult]) -> None:
            notes[model, task].write({"results": [result.model_dump(mode="json") for result in results]})

        _score(
            models, missing, requests, settings, seed=seed, device=device, batch=plan.batch,
            progress=progress, on_scored=keep,
        )  # fmt: skip
    found = {
        m: [TaskResult.model_validate(one) for t in tasks.each for one in notes[m, t].values["results"]] for m in models
    }
    return side_by_side(tasks, found)


@together
def _score(
    models: Mapping[str, Model],
    missing: Mapping[str, Sequence[str]],
    requests: Mapping[str, int],
    settings: TaskSettings,
    *,
    seed: int,
    device: str,
    batch: int,
    progress: Progress = silent,
    on_scored: Callable[[str, str, list[TaskResult]], None] = lambda model, task, results: None,
) -> None:
    from ffn_fusion.evaluation.harness import Tasks
    from ffn_fusion.modeling.load import load_model, realise

    here, opened = current(), check_tasks(settings)
    tokenizer = load_tokenizer(folder_of(models[PARENT]))
    total = sum(requests[task] for tasks in missing.values() for task in tasks)
    done = mine = 0

    def answered(count: int) -> None:
        nonlocal mine
        mine += count
        progress("tasks", min(done + mine * here.world, total), total)

    for name, tasks in missing.items():
        if not tasks:
            continue
        source, place = models[name], here.device(device)
        dtype = dtype_of(source, place)
        model = realise(source, dtype, place) if isinstance(source, Child) else load_model(source, dtype, place)
        for task in tasks:
            one, mine = Tasks({task: opened.each[task]}, {}), 0
            results = score_tasks(
                model, tokenizer, settings, tasks=one, seed=seed, name=name, batch=batch, here=here, on_answer=answered
            )
            done += requests[task]
            on_scored(name, task, results)
            progress("tasks", done, total)
        del model


def _notes(folder: Path | None, model: Model, task: Any, settings: TaskSettings, seed: int, device: str) -> Notes:
    """Open what is kept of a model's results on a task; the key is a hash of all that they depend on."""
    of = (
        (model.parent.fingerprint, model.parent.files_state, model.blueprint.to_json(), model.width_multiple)
        if isinstance(model, Child)
        else (model.fingerprint, model.files_state)
    )
    data = [getattr(split, "_fingerprint", "") for split in getattr(task, "dataset", {}).values()]
    how = settings.task_examples, settings.few_shot, seed, str(dtype_of(model, device)), version("lm_eval")
    parts = [*of, task.task_name, task.dump_config(), data, how]
    key = hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return Notes(folder, key, f"{key[:32]}.json")
