"""Time models in any engine: each is loaded once, then all of them run in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ffn_fusion.compute import on_device
from ffn_fusion.engines.bench_settings import check_asked, check_contexts, dtype_of, threads_set
from ffn_fusion.engines.llama_cpp_bench import bench_llama_cpp, find_programs
from ffn_fusion.engines.settings import BenchRequest, BenchSettings
from ffn_fusion.engines.vllm import find_python
from ffn_fusion.engines.vllm_bench import bench_vllm
from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.measure import bench, workloads_of
from ffn_fusion.latency.sub_block_costs import SubBlocks
from ffn_fusion.latency.sub_blocks import time_sub_blocks
from ffn_fusion.latency.timing import BenchEngine, Latency
from ffn_fusion.modeling.load import load_model
from ffn_fusion.processes import Progress, silent
from ffn_fusion.sources import open_model, summarise


def bench_in(models: Mapping[str, str], asked: BenchRequest, progress: Progress = silent) -> Latency:
    """Time models in the engine that is asked for.

    Args:
        models: name -> checkpoint folder, GGUF file or hub id.

    Raises:
        UsageError: the engine can't do what is asked.
        MissingExtraError: it isn't installed.
        CheckError: it can't load a model. Opening a model may raise other errors.
    """
    asked = on_device(asked)
    check_asked(asked)
    return _ENGINES[asked.engine](models, asked, progress)


def check_engine(asked: BenchSettings) -> None:
    """Check that the engine is installed. Raises: UsageError, MissingExtraError: see ``bench_in``."""
    if asked.engine == "vllm":
        find_python(asked.engine_program)
    if asked.engine == "llama.cpp":
        find_programs(asked.engine_program)


def check_askable(asked: BenchRequest) -> None:
    """Check what can be known without the models. Raises: UsageError, MissingExtraError: see ``bench_in``."""
    check_engine(asked)
    check_asked(on_device(asked))
    if asked.engine != "llama.cpp":  # which knows more
        dtype_of(asked.dtype)


def sub_blocks_of(
    models: Mapping[str, str], asked: BenchRequest, cuda_graph: bool | None, progress: Progress
) -> tuple[SubBlocks, dict[str, ModelSpec]]:
    """Time the sub-blocks of models in transformers; return the timings, and the specs of the models.

    Args:
        models: see ``bench_in``, also for the errors.
        cuda_graph: see ``time_sub_blocks``.
    """
    asked = on_device(asked)
    check_asked(asked)
    dtype = dtype_of(asked.dtype)
    if cuda_graph and torch.device(asked.device).type != "cuda":
        raise UsageError("--cuda-graph on a CPU", "give --device cuda, or leave it out")
    if asked.tensor_parallel > 1:
        raise UsageError("sub-blocks are timed in one process", "leave --tensor-parallel out")
    specs = {name: summarise(place).spec for name, place in models.items()}
    check_contexts(specs, workloads_of(asked.batches, asked.contexts, 0))
    with threads_set(asked.threads):
        found = time_sub_blocks(
            list(specs.values()),
            batches=asked.batches,
            contexts=asked.contexts,
            rounds=asked.rounds,
            dtype=dtype,
            device=asked.device,
            cuda_graph=cuda_graph,
            progress=progress,
        )
    return found, specs


def _in_transformers(models: Mapping[str, str], asked: BenchRequest, progress: Progress) -> Latency:
    if asked.tensor_parallel > 1:
        raise UsageError(
            "transformers is timed in one process",
            "take --engine vllm for --tensor-parallel, or run benchmarks/tensor_parallel.py",
        )
    dtype = dtype_of(asked.dtype)
    checkpoints = {name: open_model(place) for name, place in models.items()}
    workloads = workloads_of(asked.batches, asked.contexts, asked.new_tokens)
    check_contexts({name: checkpoint.spec for name, checkpoint in checkpoints.items()}, workloads)
    with threads_set(asked.threads):
        return bench(
            {name: load_model(checkpoint, dtype, asked.device) for name, checkpoint in checkpoints.items()},
            batches=asked.batches,
            context=asked.contexts,
            new_tokens=asked.new_tokens,
            rounds=asked.rounds,
            seed=asked.seed,
            progress=progress,
        )


_ENGINES: Mapping[BenchEngine, Callable[[Mapping[str, str], BenchRequest, Progress], Latency]] = {
    "transformers": _in_transformers,
    "vllm": bench_vllm,
    "llama.cpp": bench_llama_cpp,
}
