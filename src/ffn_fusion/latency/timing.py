"""Timings and the machine that they were measured on, as JSON. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ffn_fusion.settings import Frozen

Phase = Literal["prefill", "decode"]
BenchEngine = Literal["transformers", "vllm", "llama.cpp"]
"""An engine in which models can be timed."""
Bound = Literal["bandwidth", "compute"]


class Roofline(Frozen):
    """The device's best in the same run: bytes read per second, and FLOPs per second of a matrix product."""

    bytes_per_second: float
    flops_per_second: float

    def least(self, work: Work) -> tuple[float, Bound]:
        """Return the least seconds in which the device can do this work, and which limit that is."""
        moving, computing = work.moved_bytes / self.bytes_per_second, work.flops / self.flops_per_second
        return (moving, "bandwidth") if moving >= computing else (computing, "compute")


class Work(Frozen):
    """The least work of one prefill or one decode step: each weight is read once, the KV cache is read and written
    (``kv_bytes``), and the FLOPs are those of matrices and attention. States between layers are not counted.
    """

    weight_bytes: float
    kv_bytes: float
    flops: float

    @property
    def moved_bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes


class Timing(Frozen):
    """A model under a workload: seconds of one run (a prefill of ``context`` tokens, or ``new_tokens`` decode steps).

    Args:
        speedup: how many times as fast as each other model: medians of the ratios within a round.
        speedup_error: standard errors of these.
        work: of the prefill, or of one decode step at the mean length of the decode.
        limit_share: the least time that this machine's limits allow, as a share of the median.
        memory_bytes: peak of the whole run, weights included; None if it is unknown.
    """

    model: str
    phase: Phase
    batch: int
    context: int
    new_tokens: int
    rounds: int
    median_s: float
    p10_s: float
    p90_s: float
    tokens_per_second: float
    speedup: dict[str, float]
    speedup_error: dict[str, float] = Field(default_factory=dict)
    work: Work | None = None
    limit_share: float | None = None
    limited_by: Bound | None = None
    memory_bytes: int | None = None

    @property
    def steps(self) -> int:
        """The number of consecutive passes through the model: 1 for a prefill."""
        return max(self.new_tokens, 1) if self.phase == "decode" else 1

    @property
    def moved_per_token(self) -> float | None:
        """Bytes of weights and KV cache per token of each sequence."""
        if self.work is None:
            return None
        return self.work.moved_bytes / self.batch / (self.context if self.phase == "prefill" else 1)


class Latency(Frozen):
    """All timings of one interleaved run.

    Args:
        threads: of each process.
        models: in the order in which they are shown: parent, pruned, fused.
        tensor_parallel: number of processes that share a model.
        roofline: None if it wasn't measured.
    """

    engine: str
    machine: str
    threads: int
    dtype: str
    models: tuple[str, ...]
    timings: tuple[Timing, ...]
    tensor_parallel: int = 1
    roofline: Roofline | None = None

    def get(self, model: str, phase: Phase, batch: int, context: int | None = None) -> Timing:
        """Return the first such timing, with any context if ``context`` is None."""
        wanted = (model, phase, batch)
        found = (t for t in self.timings if (t.model, t.phase, t.batch) == wanted and context in (None, t.context))
        return next(found)

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(sorted({timing.batch for timing in self.timings}))

    @property
    def settings(self) -> tuple[tuple[int, int], ...]:
        """Every (batch, context), in the order in which they were run."""
        return tuple(dict.fromkeys((timing.batch, timing.context) for timing in self.timings))
