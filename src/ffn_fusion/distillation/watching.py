"""Log a training to TensorBoard or trackio with transformers' own callbacks.

Logging affects neither the weights nor the key of a training. A log entry is named by the first digits of that key, so
a resumed training continues its entry, and a different one gets its own.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from time import perf_counter
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback

from ffn_fusion.distillation.tracking import PROJECT, Tracking


def watchers(tracking: Tracking | None, key: str, step: int, tokens: int) -> list[TrainerCallback]:
    """Return the callbacks for the Trainer on its first process.

    Args:
        key: of the training. step: the last step already logged. tokens: per step.
    """
    if tracking is None:
        return []
    run = key[:8]
    tool = _tensorboard(tracking, run, step) if tracking.tool == "tensorboard" else _trackio(tracking, run)
    return [_Pace(tokens), tool]


def _tensorboard(tracking: Tracking, run: str, step: int) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    # what a killed process said of later steps is hidden: they're made again
    return TensorBoardCallback(SummaryWriter(str(tracking.folder / run), purge_step=step + 1))


def _trackio(tracking: Tracking, run: str) -> TrainerCallback:
    os.environ.setdefault("TRACKIO_DIR", str(tracking.folder.absolute()))  # read on import; no argument says it
    return _Trackio(run)


class _Pace(TrainerCallback):
    """Adds tokens per second since the last log; placed before the callback that logs."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._step, self._time = tokens, 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step, self._time = state.global_step, perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        steps, now = state.global_step - self._step, perf_counter()
        if "loss" in logs and steps:
            logs["tokens_per_second"] = steps * self._tokens / (now - self._time)
            self._step, self._time = state.global_step, now


class _Trackio(TrackioCallback):
    """trackio under our names and without output: standard output is reserved for results."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        args.project, args.run_name = PROJECT, self._run
        with redirect_stdout(sys.stderr):
            super().setup(args, state, model, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        with redirect_stdout(sys.stderr):
            super().on_train_end(*args, **kwargs)
