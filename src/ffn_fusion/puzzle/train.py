"""Blockwise local distillation: an entry's sub-blocks trained on the parent's own states, apart from all others.

Every entry is trained by itself, with a seed of its own, so it becomes the same whatever else is in the library. The
windows of a step are chosen among those of all processes; each works on its own and the gradients are summed, so that
the number of processes changes nothing but rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch

from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.processes import current
from ffn_fusion.puzzle.lesson import Lesson, relative_errors
from ffn_fusion.puzzle.settings import TrainingSettings
from ffn_fusion.repair.fit import SLOT

CHECKS = 20
_LEAST_RATE = 0.1  # of the learning rate, at the end
_BETAS = (0.9, 0.95)


def train_entry(lesson: Lesson, settings: TrainingSettings, seed: int, dtype: torch.dtype, before: float) -> int:
    """Train an entry's parameters; in the end they are those of the least error on the windows that decide.

    Args:
        lesson: its blocks are in float32 (or float64), whatever the precision of the forward passes.
        dtype: of the forward passes; bfloat16 and float16 by autocast.
        before: the error as the entry is; if nothing is better, it stays as it is.

    Returns:
        The number of steps.
    """
    parameters = [parameter.requires_grad_() for parameter in lesson.parameters.values()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, _BETAS, weight_decay=0.0)
    total = steps_of(_count(lesson.windows.fitted), settings)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, settings.warm_up))
    best, kept, stale, done = before, [p.detach().clone() for p in parameters], 0, 0
    every = max(1, total // CHECKS, _steps_worth(_count(lesson.windows.deciding), settings))
    try:
        for batch in islice(_batches(lesson, settings.batch, f"{seed} {lesson.entry.name}"), total):
            optimizer.zero_grad(set_to_none=False)
            _gradients(lesson, batch, dtype)
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
            current().add_up(*gradients)
            optimizer.step()
            rate.step()
            done += 1
            if done % every and done != total:
                continue
            with _autocast(lesson, dtype):
                error = lesson.error(lesson.windows.deciding)
            if error < best:
                best, kept, stale = error, [p.detach().clone() for p in parameters], 0
            else:
                stale += 1
            if stale == settings.patience or not math.isfinite(error):
                break
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.requires_grad_(False).data.copy_(value)
            parameter.grad = None
    return done


def steps_of(windows: int, settings: TrainingSettings) -> int:
    """Return the most steps of a training on so many windows."""
    return settings.epochs * -(-windows // settings.batch)


def _count(parts: Sequence[slice]) -> int:
    """Return the number of windows in the parts of all processes."""
    return sum(current().gather([sum(part.stop - part.start for part in parts)]))


def _steps_worth(windows: int, settings: TrainingSettings) -> int:
    """Return the least steps between checks on so many windows that make checks a tenth of the work.

    A step goes forward and back, which is three times a check's forward pass.
    """
    return math.ceil(windows / (0.1 * 3 * settings.batch))


def _batches(lesson: Lesson, size: int, words: str) -> Iterator[list[int]]:
    """Yield the windows of each step as numbers among those of all processes, epoch after epoch, shuffled."""
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")
    order = torch.Generator().manual_seed(seed)
    count = _count(lesson.windows.fitted)
    while True:
        shuffled = torch.randperm(count, generator=order).tolist()
        yield from (shuffled[k : k + size] for k in range(0, count, size))


def _gradients(lesson: Lesson, batch: list[int], dtype: torch.dtype) -> None:
    """Add the gradient of the mean error over a step's tokens, as far as its windows are this process's."""
    here = current()
    mine = [window // here.world for window in batch if window % here.world == here.rank]
    at_once = max(1, ROWS // lesson.context)
    for some in (mine[k : k + at_once] for k in range(0, len(mine), at_once)):
        start, goal = (
            torch.cat([view.read(SLOT, slice(n, n + 1)) for n in some]) for view in (lesson.start, lesson.goal)
        )
        with torch.enable_grad(), _autocast(lesson, dtype):
            state = lesson.forward(start)
        errors = relative_errors(state, goal).mean(-1)
        (errors.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]


def _autocast(lesson: Lesson, dtype: torch.dtype) -> AbstractContextManager[object]:
    if dtype.itemsize >= 4:
        return nullcontext()
    device = next(iter(lesson.parameters.values())).device.type
    return torch.autocast(device, dtype)


def _rate(step: int, total: int, warm_up: float) -> float:
    """Return the share of the learning rate: up in a line, and down along a cosine."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, total - rising)
    return _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))
