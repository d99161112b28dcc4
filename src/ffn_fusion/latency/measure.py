"""Prefill and decode times of several models, interleaved (see ``interleave``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from ffn_fusion.latency.interleave import Runner, Workload, interleave
from ffn_fusion.latency.machine import machine
from ffn_fusion.latency.roofline import better, measure_roofline
from ffn_fusion.latency.summary import timings_of
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.latency.transformers_runner import TransformersRunner, traffic_of
from ffn_fusion.processes import Progress, silent


def bench(
    models: Mapping[str, Any],
    *,
    batches: Sequence[int] = (1, 8),
    context: int | Sequence[int] = 128,
    new_tokens: int = 16,
    rounds: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> Latency:
    """Time models of transformers at every batch size, and the machine's limits before and after.

    Args:
        models: name -> a causal LM in evaluation mode, in the order in which they are shown.
        context: tokens of the prompt (random ids); several are timed one after another.
        new_tokens: decode steps, each with one token per sequence.
        rounds: timed rounds, after one that isn't counted.

    Returns:
        Medians with 10th and 90th percentiles and, for each model, its speed-up over every other, bytes moved, FLOPs,
        peak memory and the share of the machine's limits.

    Raises:
        UsageError: the device has too little memory.
    """
    first = next(iter(models.values()))
    vocabulary = min(model.config.vocab_size for model in models.values())
    return time_in_turn(
        f"transformers {version('transformers')} on {first.device.type}",
        {name: TransformersRunner(model, vocabulary, seed) for name, model in models.items()},
        {name: traffic_of(model) for name, model in models.items()},
        workloads_of(batches, (context,) if isinstance(context, int) else context, new_tokens),
        rounds=rounds,
        device=first.device,
        dtype=str(first.dtype).removeprefix("torch."),
        product_dtype=first.dtype,
        threads=torch.get_num_threads(),
        progress=progress,
    )


def time_in_turn(
    engine: str,
    runners: Mapping[str, Runner],
    traffic: Mapping[str, Traffic],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    device: torch.device | str,
    dtype: str,
    product_dtype: torch.dtype,
    threads: int,
    tensor_parallel: int = 1,
    progress: Progress,
) -> Latency:
    """Time models that are loaded in an engine, in turn, and the machine's limits before and after.

    Args:
        runners, traffic: by the names of the models, in the order in which they are shown.
        dtype: the dtype of the weights, as text.
        product_dtype: the dtype of the matrix product that measures the machine's FLOP/s.
        threads: threads of each of the ``tensor_parallel`` processes that share a model.
    """
    before = measure_roofline(device, product_dtype, threads * tensor_parallel)
    runs = interleave(runners, workloads, rounds, progress)
    roofline = better(before, measure_roofline(device, product_dtype, threads * tensor_parallel))
    return Latency(
        engine=engine,
        machine=machine(device),
        threads=threads,
        dtype=dtype,
        models=tuple(runners),
        timings=timings_of(runs, traffic, roofline),
        tensor_parallel=tensor_parallel,
        roofline=roofline,
    )


def workloads_of(batches: Sequence[int], contexts: Sequence[int], new_tokens: int) -> list[Workload]:
    """Return every batch with every context, each once."""
    return list(dict.fromkeys(Workload(b, c, new_tokens) for c in contexts for b in batches))
