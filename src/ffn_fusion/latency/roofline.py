"""The limits of a device: bytes read per second, and FLOPs per second of a matrix product, both with PyTorch.

The best of several ways to read and of several repetitions counts: a limit is what can be reached, and other programs
may be using the machine. The memory that is read is several times the largest cache.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.latency.timing import Roofline

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_READ_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
_LARGEST = 16_384
_LONG_ENOUGH = 0.02  # seconds of a matrix product, so that its launch doesn't count
_REPEATS = 4


def measure_roofline(device: torch.device | str, dtype: torch.dtype, threads: int | None = None) -> Roofline:
    """Measure both limits, which takes about a second.

    Args:
        dtype: of the matrix product.
        threads: PyTorch's threads during the measurement, on a CPU; None leaves them as they are.
    """
    device, before = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return Roofline(bytes_per_second=read_bandwidth(device), flops_per_second=matmul_rate(device, dtype))
    finally:
        torch.set_num_threads(before)


def better(first: Roofline, second: Roofline) -> Roofline:
    """Return the larger of each limit."""
    return Roofline(
        bytes_per_second=max(first.bytes_per_second, second.bytes_per_second),
        flops_per_second=max(first.flops_per_second, second.flops_per_second),
    )


@torch.inference_mode()
def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second read from memory far larger than the caches."""
    x = _memory(device)
    ways: tuple[Callable[[], object], ...] = (
        lambda: x.sum(),
        lambda: torch.dot(x, x),
        lambda: x.view(torch.bfloat16).sum(),
    )
    return max(x.nbytes / fastest(way, device) for way in ways)


@torch.inference_mode()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of products of square matrices, enlarged until a product takes long enough."""
    size, best = 512, 0.0
    while True:
        a = torch.randn(size, size, device=device).to(dtype)
        took = fastest(lambda a=a: a @ a, device)  # type: ignore[misc]
        best = max(best, 2.0 * size**3 / took)
        if took > _LONG_ENOUGH or size == _LARGEST:
            return best
        size *= 2


def fastest(work: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Return the seconds of the fastest of several repetitions, after one that isn't counted."""
    work()
    return min(seconds(work, device) for _ in range(repeats))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``work`` takes; on a GPU by its own clock."""
    if device.type == "cuda":
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cache_bytes(device: torch.device) -> int:
    """Return the size of the device's largest cache, which weights that are read repeatedly must exceed."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")] if _CACHES.is_dir() else []
    return max((int(size.removesuffix("K")) << 10 for size in sizes if size.endswith("K")), default=1 << 25)


def _memory(device: torch.device) -> Tensor:
    """Return a large tensor of ones; on a CPU in huge pages if possible, so that page lookups don't count."""
    count = max(_READ_BYTES.get(device.type, 1 << 28), 4 * cache_bytes(device)) // 4
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return torch.ones(min(count, free // 16 * 2), device=device)
    area = mmap.mmap(-1, 4 * count)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=torch.float32, count=count).fill_(1)
