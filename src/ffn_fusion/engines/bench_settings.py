"""Checks of a benchmark before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.errors import CheckError, UsageError
from ffn_fusion.families import ModelSpec, nemotron_nas, per_block
from ffn_fusion.latency.interleave import Workload
from ffn_fusion.latency.machine import cores
from ffn_fusion.portability.check import check
from ffn_fusion.portability.rule import Engine

DTYPES = ("float32", "bfloat16", "float16")


def check_asked(asked: BenchRequest) -> None:
    """Check what no engine could do. Raises: UsageError."""
    if asked.threads and asked.device == "cpu" and asked.threads * asked.tensor_parallel > cores():
        raise UsageError(
            f"{asked.threads} threads for each of {asked.tensor_parallel} processes, and {cores()} cores"
            if asked.tensor_parallel > 1
            else f"{asked.threads} threads, and {cores()} cores",
            "take no more --threads than there are cores",
        )
    check_device(asked.device)


def check_device(device: str) -> None:
    """Check that PyTorch sees the device. Raises: UsageError."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"{device!r} is no device", "take cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, and PyTorch sees no GPU", "take --device cpu, or install PyTorch for your GPU")


def dtype_of(name: str) -> torch.dtype:
    """Return PyTorch's dtype of a name. Raises: UsageError: there is none."""
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} isn't known", f"take {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def check_contexts(specs: Mapping[str, ModelSpec], workloads: Sequence[Workload]) -> None:
    """Check that every model can read the tokens of the longest workload. Raises: UsageError."""
    longest = max(workload.context + workload.new_tokens + 1 for workload in workloads)
    for name, spec in specs.items():
        most = spec.positions or spec.config.get("max_position_embeddings")
        if isinstance(most, int) and longest > most:
            raise UsageError(
                f"{name} reads {most:,} tokens, and context and new tokens come to {longest:,}",
                "take a smaller --context or fewer --new-tokens",
            )


def check_loads(name: str, checkpoint: Checkpoint, engine: Engine) -> None:
    """Check a child by the portability rules. Raises: CheckError: the engine can't load it."""
    if checkpoint.spec.config.get("model_type") not in (nemotron_nas.MODEL_TYPE, per_block.MODEL_TYPE):
        return
    (found,) = check(checkpoint, [engine])
    if found.problems:
        problem = found.problems[0]
        where = "" if problem.block is None else f"block {problem.block}: "
        hint = "ffn-fusion check --fix writes it as it loads it" if found.verdict == "loads after --fix" else ""
        raise CheckError(f"{engine} can't run {name}: {where}it {problem.reason}", hint or "choose another engine")


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Set the number of PyTorch threads in this context, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
