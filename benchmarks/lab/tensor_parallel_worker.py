"""The program of each process of ``measure_tensor_parallel``: ``torchrun -m lab.tensor_parallel_worker``.

Arguments: a JSON file that says what to measure, and the file for the first process's answer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ffn_fusion.latency.machine import machine
from lab.all_reduces import fit_cost

BARE_BYTES = tuple(4**k for k in range(6, 12))  # 4 KiB to 4 MiB
_BARE_REPEATS = 20
_REDUCE_NAMES = ("gloo:all_reduce", "nccl:all_reduce")


class Sharded:
    """A model shared by all processes: ``prefill`` reads a prompt, then each ``step`` decodes one token a sequence."""

    def __init__(self, folder: str, asked: Mapping[str, Any], device: torch.device) -> None:
        self.model = load_sharded(Path(folder), getattr(torch, asked["dtype"]))
        self.device = device
        self._asked = asked

    @property
    def splits_embedding(self) -> bool:
        plan = getattr(self.model, "tp_plan", None) or {}
        return any(name.endswith("embed_tokens") and style == "embedding_rowwise" for name, style in plan.items())

    def prefill(self) -> None:
        from transformers import DynamicCache

        generator = torch.Generator().manual_seed(0)  # the same on every process
        shape = (self._asked["batch"], self._asked["context"])
        ids = torch.randint(self.model.config.vocab_size, shape, generator=generator)
        self._cache = DynamicCache()
        self._token = self._run(ids.to(self.device))

    def step(self) -> None:
        self._token = self._run(self._token)

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        out = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        token: torch.Tensor = out.logits[:, -1:].argmax(-1)
        return token


def load_sharded(folder: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint on all processes of this torchrun, each with its share of heads and channels."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    from ffn_fusion.registration import register

    register()
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, distributed_config=DistributedConfig(tp_plan="auto")
    ).eval()


def step_seconds(model: Sharded, steps: int) -> float:
    """Measure the mean seconds of ``steps`` decode steps after a prompt."""
    model.prefill()
    dist.barrier()
    synchronise(model.device)
    start = time.perf_counter()
    for _ in range(steps):
        model.step()
    synchronise(model.device)
    return (time.perf_counter() - start) / steps


def profiled(model: Sharded, steps: int) -> tuple[float, float]:
    """Count the all-reduces of a decode step, and measure the part of its time that they take."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = model.device.type == "cuda"
    model.prefill()
    dist.barrier()
    synchronise(model.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        start = time.perf_counter()
        for _ in range(steps):
            model.step()
        synchronise(model.device)
        whole = time.perf_counter() - start
    rows = seen.key_averages()
    count = sum(row.count for row in rows if row.key in _REDUCE_NAMES and (not on_gpu or row.cpu_time_total > 0))
    if on_gpu:
        spent = sum(row.device_time_total for row in rows if "ncclDevKernel_AllReduce" in row.key)
    else:
        spent = sum(row.cpu_time_total for row in rows if row.key in _REDUCE_NAMES)
    return count / steps, spent / 1e6 / whole


def bare_seconds(nbytes: int, dtype: torch.dtype, device: torch.device) -> float:
    """Measure the mean seconds of an all-reduce, many in a row."""
    values = torch.zeros(max(1, nbytes // dtype.itemsize), dtype=dtype, device=device)
    dist.barrier()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(_BARE_REPEATS):
        dist.all_reduce(values)
    synchronise(device)
    return (time.perf_counter() - start) / _BARE_REPEATS


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turns(names: Sequence[str], rounds: int) -> Iterable[tuple[int, str]]:
    """Yield (round, name): every name in every round, another one first each time. Round 0 warms up."""
    for turn in range(rounds + 1):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            yield turn, name


@torch.inference_mode()
def measure(asked: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    models = {name: Sharded(folder, asked, device) for name, folder in asked["models"].items()}
    names, dtype = list(models), getattr(torch, asked["dtype"])
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn, name in turns(names, asked["rounds"]):
        seconds = step_seconds(models[name], asked["new_tokens"])
        if turn:
            times[name].append(seconds)
    message = {n: asked["batch"] * m.model.config.hidden_size * dtype.itemsize for n, m in models.items()}
    sizes = {str(size): size for size in sorted({*BARE_BYTES, *message.values()})}
    bare: dict[str, list[float]] = {name: [] for name in sizes}
    for turn, name in turns(list(sizes), asked["rounds"]):
        seconds = bare_seconds(sizes[name], dtype, device)
        if turn:
            bare[name].append(seconds)
    shares = {name: profiled(model, asked["new_tokens"]) for name, model in models.items()}
    medians = {sizes[name]: float(np.median(found)) for name, found in bare.items()}
    cost = fit_cost(list(medians), list(medians.values()))
    timings = [
        {
            "model": name,
            "counted": asked["counts"][name] + models[name].splits_embedding,
            "measured": round(shares[name][0]),
            **_spread(times[name]),
            "all_reduce_share": min(1.0, shares[name][1]),
            "message_bytes": message[name],
            "speedup": {other: _ratio(times[other], times[name]) for other in names if other != name},
        }
        for name in names
    ]
    return {
        "timings": timings,
        "bare": [{"nbytes": size, "median_s": seconds} for size, seconds in medians.items()],
        "cost": cost.model_dump(),
    }


def _spread(times: Sequence[float]) -> dict[str, float]:
    low, median, high = (float(value) for value in np.percentile(times, [10, 50, 90]))
    return {"median_s": median, "p10_s": low, "p90_s": high}


def _ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    return float(np.median(np.asarray(theirs) / np.asarray(mine)))


def main(question: Path, answer: Path) -> None:
    asked = json.loads(question.read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    device = torch.device(asked["device"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        measured = measure(asked, device)
        if dist.get_rank() == 0:
            from transformers import __version__ as version

            about = {
                "engine": f"transformers {version}",
                "machine": machine(device),
                "backend": dist.get_backend(),
                "processes": dist.get_world_size(),
                **{key: asked[key] for key in ("threads", "dtype", "batch", "context", "new_tokens", "rounds")},
            }
            answer.write_text(json.dumps({**about, **measured}), encoding="utf-8")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
