"""Constants of a GPU for the model of a machine: what it reads a second, and what a sub-block takes beside that.

Everything runs as engines run a decode step: compiled, in a CUDA graph, batch 1, BF16, weights that no cache holds. The
shapes are one device's share of Llamas from 8B to 405B at tensor parallel 1 and 8; all-reduces need several GPUs and
aren't among them. A matrix' time is fitted as bytes / rate + fixed; a sub-block's fixed part is its time less its bytes
at that rate. Without a GPU there is nothing to measure, and nothing is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MATRICES = (  # outputs, inputs
    (1280, 8192), (8192, 1024), (2304, 16384), (16384, 2048), (7168, 8192), (8192, 3584), (13312, 16384),
    (16384, 6656), (28672, 4096), (4096, 14336), (57344, 8192), (16384, 53248),
)  # fmt: skip
SUB_BLOCKS = (  # hidden size, FFN width, heads, K/V heads on one device, how many in a row
    (4096, 14336, 32, 8, 8), (8192, 3584, 8, 1, 12), (16384, 6656, 16, 1, 6), (16384, 2688, 16, 1, 8),
)  # fmt: skip
HEAD_DIM, CONTEXT = 128, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="say whether there's a GPU")
    parser.add_argument("--folder", type=Path, help="not needed: nothing is written")
    options = parser.parse_args()
    from common import finish

    there = torch.cuda.is_available()
    figures = measure() if there and not options.quick else {"GPUs": float(torch.cuda.device_count())}
    finish("hardware_gpu", figures, {}, True, {"gpu": torch.cuda.get_device_name() if there else "none"})


def measure() -> dict[str, float]:
    rate, fixed = _matrices()
    own = [_sub_blocks(*shape) for shape in SUB_BLOCKS]
    return {
        "read TB/s": _read() / 1e12,
        "copy TB/s": _read(copy=True) / 1e12,
        "matrix-vector TB/s": rate / 1e12,
        "matrix-vector fixed us": fixed * 1e6,
        "tiny kernel us": _seconds(_chain, 200) * 1e6,
        **{
            f"{k} fixed us, {s[0]} x {s[1]}": (t[k][0] - t[k][1] / rate) * 1e6
            for s, t in zip(SUB_BLOCKS, own, strict=True)
            for k in t
        },
        **{f"{k} fixed us": float(np.mean([t[k][0] - t[k][1] / rate for t in own])) * 1e6 for k in own[0]},
        **{f"{name} TFLOP/s, {n} rows": _products(n, name == "fp8") for name in ("bf16", "fp8") for n in (1024, 4096)},
    }


def _seconds(work: Callable[[], object], count: int = 1, rounds: int = 20) -> float:
    """Median time of ``work`` as a CUDA graph, for each of the ``count`` things that it does."""
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times: list[float] = []
    for turn in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) / 1e3] * (turn >= 3)
    return median(times) / count


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.01


def _read(copy: bool = False) -> float:
    source = torch.zeros(1 << 29, device="cuda")
    target = torch.empty_like(source)
    time = _seconds((lambda: target.copy_(source)) if copy else (lambda: torch.sum(source)))
    return source.nbytes * (1 + copy) / time


def _chain() -> None:
    x = torch.zeros(16384, device="cuda", dtype=torch.bfloat16)
    for _ in range(200):
        x.add_(1)


def _matrices() -> tuple[float, float]:
    """Bytes a second and seconds: least squares on relative errors."""
    sizes, times = [], []
    for rows, columns in MATRICES:
        count = max(2, min(24, (200 << 20) // (rows * columns) + 2))
        weights, x = [_random(rows, columns) for _ in range(count)], _random(1, columns)
        times.append(_seconds(lambda weights=weights, x=x: [F.linear(x, w) for w in weights], count))  # type: ignore[misc]
        sizes.append(2.0 * rows * columns)
    t = np.asarray(times)
    slope, fixed = np.linalg.lstsq(np.stack([sizes / t, 1 / t], 1), np.ones(len(t)), rcond=None)[0]
    return 1 / float(slope), float(fixed)


def _products(rows: int, fp8: bool) -> float:
    weights, x = [_random(28672, 8192) for _ in range(2)], _random(rows, 8192)
    one = torch.ones((), device="cuda")
    if fp8:
        weights, x = [w.to(torch.float8_e4m3fn) for w in weights], x.to(torch.float8_e4m3fn)

    def work() -> None:
        for w in weights:
            if fp8:
                torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
            else:
                F.linear(x, w)

    return 2 * rows * 28672 * 8192 / _seconds(work, 2) / 1e12


def _sub_blocks(D: int, width: int, heads: int, kv: int, count: int) -> dict[str, tuple[float, float]]:
    """Attention and FFN: seconds and bytes of one."""
    x, d = _random(1, D), HEAD_DIM
    ffns = [(_random(D), _random(2 * width, D), _random(D, width)) for _ in range(count)]
    attentions = [
        (_random(D), _random((heads + 2 * kv) * d, D), _random(D, heads * d), *_random(2, 1, kv, CONTEXT, d))
        for _ in range(count)
    ]
    turn = (_random(d), _random(d))

    def run(block: Callable[..., Tensor], weights: list[Any], *more: Any) -> Callable[[], None]:
        def work() -> None:
            state = x
            for own in weights:
                state = block(state, *own, *more)

        return work

    found = {}
    for name, work, weights in (
        ("attention", run(_attention, attentions, heads, kv, turn), attentions),
        ("ffn", run(_ffn, ffns), ffns),
    ):
        found[name] = (_seconds(work, count), float(sum(part.nbytes for part in weights[0])))
    return found


@torch.compile(dynamic=False)
def _ffn(x: Tensor, scale: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(_norm(x, scale), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def _norm(x: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), scale, 1e-5)


_normed = torch.compile(_norm, dynamic=False)


@torch.compile(dynamic=False)
def _turned(h: Tensor, heads: int, kv: int, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    all_heads = h.view(1, heads + 2 * kv, 1, HEAD_DIM)
    qk = all_heads[:, : heads + kv]
    half = HEAD_DIM // 2
    qk = qk * turn[0] + torch.cat([-qk[..., half:], qk[..., :half]], -1) * turn[1]
    return qk[:, :heads].contiguous(), qk[:, heads:], all_heads[:, heads + kv :]


_added = torch.compile(torch.add, dynamic=False)


def _attention(x: Tensor, scale: Tensor, qkv: Tensor, out: Tensor, K: Tensor, V: Tensor, *more: Any) -> Tensor:
    q, k, v = _turned(F.linear(_normed(x, scale), qkv), *more)
    K[:, :, :1].copy_(k)
    V[:, :, :1].copy_(v)
    attended = F.scaled_dot_product_attention(q, K, V, enable_gqa=True)
    return _added(x, F.linear(attended.reshape(1, -1), out))


if __name__ == "__main__":
    main()
