"""Prefill and decode times of several models in transformers, interleaved (see ``interleave``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from ffn_fusion.latency.interleave import Progress, Workload, interleave
from ffn_fusion.latency.machine import machine
from ffn_fusion.latency.roofline import better, measure_roofline
from ffn_fusion.latency.summary import timings_of
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.transformers_runner import TransformersRunner, traffic_of


def bench(
    models: Mapping[str, Any],
    *,
    batches: Sequence[int] = (1, 8),
    context: int | Sequence[int] = 128,
    new_tokens: int = 16,
    rounds: int = 5,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Latency:
    """Time every model at every batch size, and the machine's limits before and after.

    Args:
        models: name -> a transformers causal LM in evaluation mode, in the order they are shown.
        context: tokens of the prompt (random ids); several are timed one after another.
        new_tokens: decode steps, each with one token a sequence. rounds: timed rounds, after one that isn't counted.

    Returns:
        Medians with 10th and 90th percentile, for each model its speed-up over every other, bytes moved, FLOPs, peak
        memory and the share of the machine's limits.

    Raises:
        UsageError: the device has no memory for it.
    """
    workloads = workloads_of(batches, (context,) if isinstance(context, int) else context, new_tokens)
    first = next(iter(models.values()))
    vocabulary = min(model.config.vocab_size for model in models.values())
    runners = {name: TransformersRunner(model, vocabulary, seed) for name, model in models.items()}
    before = measure_roofline(first.device, first.dtype)
    runs = interleave(runners, workloads, rounds, progress)
    roofline = better(before, measure_roofline(first.device, first.dtype))
    traffic = {name: traffic_of(model) for name, model in models.items()}
    return Latency(
        engine=f"transformers {version('transformers')} on {first.device.type}",
        machine=machine(first.device),
        threads=torch.get_num_threads(),
        dtype=str(first.dtype).removeprefix("torch."),
        models=tuple(models),
        timings=timings_of(runs, traffic, roofline),
        roofline=roofline,
    )


def workloads_of(batches: Sequence[int], contexts: Sequence[int], new_tokens: int) -> list[Workload]:
    """Every batch with every context, each once."""
    return list(dict.fromkeys(Workload(b, c, new_tokens) for c in contexts for b in batches))
