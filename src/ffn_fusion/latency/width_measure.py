"""Measure the width curve in transformers, on a child's FFN blocks, with more weights than any cache holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ffn_fusion.blockwise.room import free_memory
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import stand_in
from ffn_fusion.latency.interleave import turned
from ffn_fusion.latency.machine import machine
from ffn_fusion.latency.summary import median_error
from ffn_fusion.latency.width_curve import WidthCurve, WidthPoint, most_fused, multiples, own_width, widest
from ffn_fusion.processes import Progress, silent

UNCACHED = 192 << 20
"""The least bytes of weights per pass: more than caches hold, so that each pass reads memory."""
_FEWEST, _MOST_SMALL = 2, 64
_SURE_ENOUGH = 0.005  # a ratio with this standard error needs no more rounds


@torch.inference_mode()
def measure_widths(
    spec: ModelSpec,
    *,
    batches: Sequence[int] = (1, 8),
    dtype: str = "float32",
    device: str = "cpu",
    rounds: int = 9,
    most: int | None = None,
    progress: Progress = silent,
) -> WidthCurve:
    """Time decode steps through the FFNs of a model: as they are, and 2, 3, 4, 6, ... of them as one.

    Every round runs all widths on the same random weights, so that every pass reads the same bytes; each block is a
    child's attention-free block, with its norm and its residual sum. With one thread on a CPU, processor time is
    measured, so that other programs don't count.

    Args:
        batches: numbers of sequences, which are the rows of one decode step.
        rounds: the least number of rounds; up to three times as many while ratios are uncertain.
        most: FFNs in the widest fused one; default: all that the model could fuse, as far as memory allows.
    """
    D, F, kind = spec.hidden_size, own_width(spec), getattr(torch, dtype)
    possible = most_fused(spec)
    unit = 3 * D * F * kind.itemsize
    room = max(1, free_memory(torch.device(device)) // 2 // unit)
    top = max(1, min(possible, most or possible, room))
    units = min(room, max(_FEWEST * top, min(_MOST_SMALL, UNCACHED // unit + 1)))
    weights = torch.randn(units * unit // kind.itemsize, device=device, dtype=kind).mul_(D**-0.5)
    stacks = {k: _blocks(spec, k * F, weights) for k in multiples(top)}
    points: list[WidthPoint] = []
    for b, batch in enumerate(batches):
        x = torch.randn(batch, 1, D, device=device).to(kind)
        per_ffn = {k: _seconds_of(blocks, x, k * len(blocks), _clock(device)) for k, blocks in stacks.items()}
        points += _points(_rounds(per_ffn, rounds), F, batch, unit)
        progress("widths", b + 1, len(batches))
    return WidthCurve(
        engine=f"transformers {_version()}",
        machine=machine(device),
        device=device,
        dtype=dtype,
        threads=torch.get_num_threads(),
        rounds=rounds,
        hidden=D,
        width=F,
        points=tuple(points),
        max_width=widest(tuple(points), top == possible),
    )


def _blocks(spec: ModelSpec, width: int, weights: Tensor) -> list[nn.Module]:
    """Return as many attention-free blocks of that width as the weights suffice for; they are views of the weights."""
    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
    from ffn_fusion.modeling.llama_shaped import make_layer

    D = spec.hidden_size
    entry: dict[str, Any] = {"attention": {"no_op": True}, "ffn": {"intermediate_size": width}}
    config = DeciLMConfig([entry], hidden_size=D, hidden_act=spec.activation, rms_norm_eps=spec.norm_eps)
    scale = torch.ones(D, dtype=weights.dtype, device=weights.device)
    blocks: list[nn.Module] = []
    for start in range(0, len(weights) - 3 * D * width + 1, 3 * D * width):
        gate, up, down = weights[start : start + 3 * D * width].view(3, D * width)
        matrices = {"ffn.gate": gate.view(width, D), "ffn.up": up.view(width, D), "ffn.down": down.view(D, width)}
        blocks.append(make_layer(stand_in(spec), config, 0, {"ffn.norm": scale, **matrices}))
    return blocks


def _seconds_of(blocks: Sequence[nn.Module], x: Tensor, ffns: int, now: Callable[[], float]) -> Callable[[], float]:
    """Return what measures the seconds of one pass, per FFN of the model's own width (``ffns`` of them)."""

    def one_pass() -> float:
        states, start = x, now()
        for block in blocks:
            states = block(states)
        return (now() - start) / ffns

    return one_pass


def _rounds(passes: Mapping[int, Callable[[], float]], rounds: int) -> dict[int, list[float]]:
    """Return the seconds of every round; there are more rounds while a ratio to the first width is uncertain."""
    names = list(passes)
    times: dict[int, list[float]] = {name: [] for name in names}
    for turn in range(3 * rounds + 1):
        for name in turned(names, turn):
            seconds = passes[name]()
            if turn:
                times[name].append(seconds)
        if turn >= rounds and all(median_error(_ratios(times, name)) <= _SURE_ENOUGH for name in names):
            break
    return times


def _ratios(times: Mapping[int, Sequence[float]], name: int) -> NDArray[np.float64]:
    return np.divide(times[name], times[min(times)])


def _points(times: Mapping[int, Sequence[float]], width: int, batch: int, unit: int) -> list[WidthPoint]:
    points = []
    for k in times:
        ratios, seconds = _ratios(times, k), float(np.median(times[k]))
        points.append(
            WidthPoint(
                width=k * width,
                fused=k,
                batch=batch,
                seconds=seconds,
                ratio=float(np.median(ratios)),
                error=median_error(ratios),
                bytes_per_second=unit / seconds,
            )
        )
    return points


def _clock(device: str) -> Callable[[], float]:
    if device != "cpu":

        def finished() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return finished
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _version() -> str:
    import transformers

    return str(transformers.__version__)
