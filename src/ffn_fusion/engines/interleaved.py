"""Models that are loaded in an engine of their own, timed in turn beside the machine's limits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ffn_fusion.engines.bench_settings import DTYPES, BenchSettings, check_context, dtype_of
from ffn_fusion.latency.interleave import Progress, Runner, interleave
from ffn_fusion.latency.machine import machine
from ffn_fusion.latency.measure import workloads_of
from ffn_fusion.latency.roofline import better, measure_roofline
from ffn_fusion.latency.summary import timings_of
from ffn_fusion.latency.timing import Latency, Roofline
from ffn_fusion.latency.traffic import Traffic


def interleaved(
    engine: str,
    runners: Mapping[str, Runner],
    traffic: Mapping[str, Traffic],
    asked: BenchSettings,
    threads: int,
    dtype: str,
    progress: Progress,
) -> Latency:
    """Time them in turn, and the machine's limits before and after."""
    workloads = workloads_of(asked.batches, asked.contexts, asked.new_tokens)
    for name, model in traffic.items():
        check_context(name, model.spec, workloads)

    def limits() -> Roofline:
        kind = dtype_of(asked.dtype) if asked.dtype in DTYPES else torch.float32
        return measure_roofline(asked.device, kind, threads * asked.tensor_parallel)

    before = limits()
    runs = interleave(runners, workloads, asked.rounds, progress)
    roofline = better(before, limits())
    return Latency(
        engine=engine,
        machine=machine(asked.device),
        threads=threads,
        dtype=dtype,
        models=tuple(runners),
        timings=timings_of(runs, traffic, roofline),
        tensor_parallel=asked.tensor_parallel,
        roofline=roofline,
    )
