"""Timings: what was measured, on which machine. Plain data, JSON, no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Phase = Literal["prefill", "decode"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timing(_Frozen):
    """One model in one setting: seconds of one run (a prefill of ``context`` tokens, or ``new_tokens`` decode steps).

    The ratios are medians of the ratios of runs that stood side by side: how many times as fast as that model.
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


class Latency(_Frozen):
    """All timings of one interleaved run. ``models`` in the order they're shown: parent, pruned, fused."""

    engine: str
    machine: str
    threads: int
    dtype: str
    models: tuple[str, ...]
    timings: tuple[Timing, ...]

    def get(self, model: str, phase: Phase, batch: int) -> Timing:
        return next(t for t in self.timings if (t.model, t.phase, t.batch) == (model, phase, batch))

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(sorted({timing.batch for timing in self.timings}))
