"""The speed of this machine at the parts of a sweep, measured within a few seconds on one of the model's own blocks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

import torch

from ffn_fusion.blockwise.cosine import cosine_distance
from ffn_fusion.blockwise.schedule import Schedule
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.work import Work, block_flops
from ffn_fusion.checkpoint.notes import write_atomic

_PROBE_FLOPS = 5e10  # half a second on a small machine
_HEAD_ROWS, _HEAD_VOCABULARY = 256, 16_384
_STATE_BYTES_PER_SECOND = 2e9  # states to files and back: copies to and from the system's cache


@dataclass(frozen=True)
class Pace:
    """Rates of one process.

    Args:
        block_flops: FLOPs per second inside blocks.
        head_flops: FLOPs per second at the head.
        load_bytes: bytes per second from the checkpoint to a loaded block; infinite if the other rates include it.
    """

    block_flops: float
    head_flops: float
    load_bytes: float = inf

    def save(self, path: Path) -> None:
        """Write the rates to a JSON file."""
        write_atomic(path, (json.dumps(asdict(self)) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Pace | None:
        """Return the rates in a file that ``save`` wrote, or None if there is none."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def seconds(self, work: Work, schedule: Schedule, windows: int) -> float:
        """Return the time of a sweep over ``windows`` windows, including heads; loading overlaps with computing."""
        total = 0.0
        passes = 1 if schedule.resident else schedule.chunks
        share = schedule.weight_bytes / passes / max(1, len(work.spec.blocks))
        for i in range(len(work.spec.blocks)):
            computing = (windows * work.flops_at(i) + schedule.chunks * work.once[i]) / self.block_flops
            total += max(computing, passes * share / self.load_bytes)
        total += windows * work.head_flops / self.head_flops
        moving = _STATE_BYTES_PER_SECOND if schedule.in_cache else min(self.load_bytes, _STATE_BYTES_PER_SECOND)
        return total + schedule.moved_bytes / moving


@torch.inference_mode()
def measure_pace(stack: Stack, context: int, rows: int) -> Pace:
    """Time one block (the first with both sub-blocks) and a slice of the head; the block stays loaded for the sweep."""
    spec = stack.spec
    i = next((k for k, b in enumerate(spec.blocks) if b.attention and b.ffn), 0)
    began = time.perf_counter()
    block = stack.preload(i)
    loading = time.perf_counter() - began
    stored = sum(t.nbytes if hasattr(t, "nbytes") else 0 for n, t in stack.source.tensors.items() if f".{i}." in n)
    a_window = block_flops(spec, i, context)
    windows = int(max(1, min(rows // context, _PROBE_FLOPS // max(1.0, a_window))))
    x = torch.randn(windows, context, spec.hidden_size, device=stack.device).to(stack.dtype)

    def evaluate() -> None:
        added = block.contributions(x)
        after = x + added.attention
        after += added.ffn
        cosine_distance(added.block, x)

    return Pace(
        block_flops=windows * a_window / _fastest(evaluate, stack.device),
        head_flops=_head_rate(stack),
        load_bytes=max(stored, 1) / max(loading, 1e-6),
    )


def _head_rate(stack: Stack) -> float:
    D, V = stack.spec.hidden_size, min(stack.spec.vocab_size, _HEAD_VOCABULARY)
    x = torch.randn(_HEAD_ROWS, D, device=stack.device).to(stack.dtype)
    weights = (torch.randn(V, D, device=stack.device) / D**0.5).to(stack.dtype)
    log_p = (x @ weights.T).float().log_softmax(-1)
    p = log_p.exp()

    def evaluate() -> None:
        log_q = (x @ weights.T).float().log_softmax(-1)
        torch.linalg.vecdot(p, log_p - log_q)
        log_q.argmax(-1)

    return 2.0 * _HEAD_ROWS * V * D / _fastest(evaluate, stack.device)


def _fastest(work: Callable[[], None], device: torch.device, rounds: int = 3) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
