"""From measurements to figures: medians and spread, ratios within a round, shares of the machine's limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffn_fusion.latency.interleave import Measurement, Measurements, Workload
from ffn_fusion.latency.timing import Latency, Phase, Roofline, Timing, Work
from ffn_fusion.latency.traffic import Traffic

_PHASES: tuple[Phase, ...] = ("prefill", "decode")


def timings_of(found: Measurements, traffic: Mapping[str, Traffic], roofline: Roofline | None) -> tuple[Timing, ...]:
    """Return a timing for every model, workload and phase.

    Args:
        traffic: the least work of each model; models without it get no share of the limits.
    """
    return tuple(
        _timing(name, phase, workload, found, traffic.get(name), roofline)
        for name, workload in found.memory
        for phase in _PHASES
    )


def _timing(
    name: str, phase: Phase, workload: Workload, found: Measurements, traffic: Traffic | None, roofline: Roofline | None
) -> Timing:
    mine = _seconds(found.rounds[name, workload], phase)
    others = {o: _seconds(rounds, phase) for (o, w), rounds in found.rounds.items() if w == workload and o != name}
    p10, median, p90 = (float(value) for value in np.percentile(mine, [10, 50, 90]))
    steps = workload.new_tokens if phase == "decode" else 1
    work = work_of(traffic, phase, workload) if traffic else None
    least, bound = roofline.least(work) if roofline and work else (None, None)
    return Timing(
        model=name,
        phase=phase,
        batch=workload.batch,
        context=workload.context,
        new_tokens=workload.new_tokens,
        rounds=len(mine),
        median_s=median,
        p10_s=p10,
        p90_s=p90,
        tokens_per_second=workload.batch * (workload.context if phase == "prefill" else steps) / median,
        speedup={other: float(np.median(theirs / mine)) for other, theirs in others.items()},
        speedup_error={other: median_error(theirs / mine) for other, theirs in others.items()},
        work=work,
        limit_share=least * steps / median if least is not None else None,
        limited_by=bound,
        memory_bytes=found.memory.get((name, workload)),
    )


def work_of(traffic: Traffic, phase: Phase, workload: Workload) -> Work:
    """Return the least work of the prefill, or of a decode step at the mean length."""
    if phase == "prefill":
        return traffic.prefill(workload.batch, workload.context)
    return traffic.step(workload.batch, workload.context + (workload.new_tokens + 1) / 2)


def _seconds(rounds: list[Measurement], phase: Phase) -> Any:
    return np.asarray([run.prefill_s if phase == "prefill" else run.decode_s for run in rounds])


def median_error(values: NDArray[np.float64]) -> float:
    """Estimate the standard error of a median from the spread of the middle half (1.35 sigma if normal)."""
    low, high = np.percentile(values, [25, 75])
    return float(1.2533 * (high - low) / 1.349 / len(values) ** 0.5)


def figures(latency: Latency) -> list[dict[str, Any]]:
    """Return what a user notices of each model and workload: seconds, tokens per second, bytes, share of limits."""
    found = []
    for model in latency.models:
        for batch, context in latency.settings:
            first, each = (latency.get(model, phase, batch, context) for phase in _PHASES)
            found.append(
                {
                    "model": model,
                    "batch": batch,
                    "context": context,
                    "new_tokens": each.new_tokens,
                    "time_to_first_token_s": _spread(first),
                    "time_per_output_token_s": _spread(each),
                    "tokens_per_second": each.tokens_per_second,
                    "prompt_tokens_per_second": first.tokens_per_second,
                    "peak_memory_bytes": each.memory_bytes,
                    "bytes_per_token": each.moved_per_token,
                    "share_of_limit": {"prefill": first.limit_share, "decode": each.limit_share},
                    "limited_by": {"prefill": first.limited_by, "decode": each.limited_by},
                    "speedup": {"prefill": first.speedup, "decode": each.speedup},
                }
            )
    return found


def _spread(timing: Timing) -> dict[str, float]:
    values = {"median": timing.median_s, "p10": timing.p10_s, "p90": timing.p90_s}
    return {name: value / timing.steps for name, value in values.items()}
