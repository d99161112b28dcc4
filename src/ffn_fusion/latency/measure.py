"""Prefill and decode times of several models in transformers, interleaved: every round runs all of them in turn.

Neighbouring runs share whatever else the machine does at that moment, so ratios are taken inside a round and their
median is reported; the order turns from round to round.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffn_fusion.latency.timing import Latency, Phase, Timing


@torch.inference_mode()
def bench(
    models: Mapping[str, Any],
    *,
    batches: Sequence[int] = (1, 8),
    context: int = 128,
    new_tokens: int = 16,
    rounds: int = 5,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Latency:
    """Time every model at every batch size.

    Args:
        models: name -> a transformers causal LM in evaluation mode, in the order they are shown.
        context: tokens of the prompt (random ids). new_tokens: decode steps, each with one token a sequence.
        rounds: timed rounds, after one that isn't counted.

    Returns:
        Medians with 10th and 90th percentile, and for each model its speed-up over every other.
    """
    generator = torch.Generator().manual_seed(seed)
    times: dict[tuple[str, Phase, int], list[float]] = {}
    names = list(models)
    total = len(batches) * (rounds + 1)
    for b, batch in enumerate(batches):
        vocabulary = min(model.config.vocab_size for model in models.values())
        ids = torch.randint(vocabulary, (batch, context), generator=generator)
        for turn in range(rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                prefill, decode = _one_run(models[name], ids, new_tokens)
                if turn:
                    times.setdefault((name, "prefill", batch), []).append(prefill)
                    times.setdefault((name, "decode", batch), []).append(decode)
            progress("timing", b * (rounds + 1) + turn + 1, total)
    first = next(iter(models.values()))
    return Latency(
        engine=f"transformers {_version('transformers')} on {first.device.type}",
        machine=machine(),
        threads=torch.get_num_threads(),
        dtype=str(first.dtype).removeprefix("torch."),
        models=tuple(names),
        timings=tuple(_timing(key, times, names, context, new_tokens) for key in times),
    )


def _one_run(model: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prefill, and of ``new_tokens`` greedy decode steps behind it."""
    from transformers import DynamicCache

    ids = ids.to(model.device)
    cache = DynamicCache()
    _synchronise(model)
    start = time.perf_counter()
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    _synchronise(model)
    middle = time.perf_counter()
    for _ in range(new_tokens):
        out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
    _synchronise(model)
    return middle - start, time.perf_counter() - middle


def _synchronise(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _timing(
    key: tuple[str, Phase, int],
    times: Mapping[tuple[str, Phase, int], list[float]],
    names: Sequence[str],
    context: int,
    new_tokens: int,
) -> Timing:
    name, phase, batch = key
    mine = np.asarray(times[key])
    tokens = batch * (context if phase == "prefill" else new_tokens)
    p10, median, p90 = np.percentile(mine, [10, 50, 90])
    others = {other: np.asarray(times[other, phase, batch]) for other in names if other != name}
    return Timing(
        model=name,
        phase=phase,
        batch=batch,
        context=context,
        new_tokens=new_tokens,
        rounds=len(mine),
        median_s=float(median),
        p10_s=float(p10),
        p90_s=float(p90),
        tokens_per_second=float(tokens / median),
        speedup={other: float(np.median(theirs / mine)) for other, theirs in others.items()},
    )


def machine() -> str:
    """The processor and what the process may use of it, for people to read beside a figure."""
    import os

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, f": {name}").split(":", 1)[1].strip()
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {count} cores"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
