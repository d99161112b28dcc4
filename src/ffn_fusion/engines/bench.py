"""Times of models in any engine that is run from here: each loaded once, then all of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from ffn_fusion.blockwise.memory import free_memory
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.errors import CheckError, UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.interleave import Progress, Runner, Setting, interleave
from ffn_fusion.latency.machine import cores, machine
from ffn_fusion.latency.measure import settings_of
from ffn_fusion.latency.roofline import better, measure_roofline
from ffn_fusion.latency.sub_block_costs import SubBlocks
from ffn_fusion.latency.summary import timings_of
from ffn_fusion.latency.timing import Latency, Roofline
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.portability.check import check
from ffn_fusion.portability.rule import Engine

BenchEngine = Literal["transformers", "vllm", "llama.cpp"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Asked:
    """What to time, and how.

    Args:
        rounds: timed rounds, after one that isn't counted.
        dtype: of weights and KV cache: one of ``DTYPES``; in llama.cpp any that GGUF knows, of weights.
        threads: of each process; None leaves it to the engine.
        tensor_parallel: processes that share a model.
        program: where the engine is; None looks where it's usually found.
    """

    batches: Sequence[int] = (1, 8)
    contexts: Sequence[int] = (128,)
    new_tokens: int = 16
    rounds: int = 5
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    tensor_parallel: int = 1
    seed: int = 0
    program: Path | None = None


def bench_in(engine: str, models: Mapping[str, str], asked: Asked, progress: Progress) -> Latency:
    """Time models, name -> where it is, in ``engine``.

    Raises:
        UsageError: no such engine, or it can't do what was asked. MissingExtraError: it isn't installed.
        CheckError: it can't load a model. Whatever opening a model raises.
    """
    if engine not in get_args(BenchEngine):
        raise UsageError(f"models can't be timed in {engine}", f"can be: {', '.join(get_args(BenchEngine))}")
    check_asked(asked)
    return _ENGINES[engine](models, asked, progress)


def check_asked(asked: Asked) -> None:
    """Raises: UsageError: what no engine can do."""
    if asked.threads and asked.device == "cpu" and asked.threads * asked.tensor_parallel > cores():
        raise UsageError(
            f"{asked.threads} threads for each of {asked.tensor_parallel} processes, and {cores()} cores"
            if asked.tensor_parallel > 1
            else f"{asked.threads} threads, and {cores()} cores",
            "take no more --threads than there are cores",
        )
    check_device(asked.device)


def check_device(device: str) -> None:
    """Raises: UsageError: PyTorch doesn't see such a device."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"{device!r} is no device", "take cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, and PyTorch sees no GPU", "take --device cpu, or install PyTorch for your GPU")


def dtype_of(name: str) -> torch.dtype:
    """Raises: UsageError: no such dtype."""
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} isn't known", f"take {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def sub_blocks_of(
    models: Mapping[str, str], asked: Asked, cuda_graph: bool | None, progress: Progress
) -> tuple[SubBlocks, dict[str, ModelSpec]]:
    """Time the sub-blocks of models, name -> where it is, as transformers computes them; and what the models are.

    Raises: as ``bench_in``.
    """
    from ffn_fusion.checkpoint.source import summarise
    from ffn_fusion.latency.sub_blocks import time_sub_blocks

    check_asked(asked)
    dtype = dtype_of(asked.dtype)
    if cuda_graph and torch.device(asked.device).type != "cuda":
        raise UsageError("--cuda-graph on a CPU", "give --device cuda, or leave it out")
    if asked.tensor_parallel > 1:
        raise UsageError("sub-blocks are timed in one process", "leave --tensor-parallel out")
    specs = {name: summarise(place).spec for name, place in models.items()}
    for name, spec in specs.items():
        check_context(name, spec, settings_of(asked.batches, asked.contexts, 0))
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


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """PyTorch with so many threads, and as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_transformers(models: Mapping[str, str], asked: Asked, progress: Progress) -> Latency:
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.latency.load import load_model
    from ffn_fusion.latency.measure import bench

    if asked.tensor_parallel > 1:
        raise UsageError(
            "transformers is timed in one process", "take --engine vllm for --tensor-parallel, or leave it out"
        )
    dtype = dtype_of(asked.dtype)
    checkpoints = {name: open_model(place) for name, place in models.items()}
    settings = settings_of(asked.batches, asked.contexts, asked.new_tokens)
    for name, checkpoint in checkpoints.items():
        check_context(name, checkpoint.spec, settings)
    with threads_set(asked.threads):
        return bench(
            {name: load_model(checkpoint.folder, dtype, asked.device) for name, checkpoint in checkpoints.items()},
            batches=asked.batches,
            context=asked.contexts,
            new_tokens=asked.new_tokens,
            rounds=asked.rounds,
            seed=asked.seed,
            progress=progress,
        )


def _in_llama_cpp(models: Mapping[str, str], asked: Asked, progress: Progress) -> Latency:
    from ffn_fusion.engines.llama_cpp_bench import LlamaCppRunner, find_programs, gguf_files, gguf_traffic

    if asked.tensor_parallel > 1:
        raise UsageError("llama.cpp is timed in one process", "take --engine vllm for --tensor-parallel")
    programs = find_programs(asked.program)
    if max(asked.batches) > 1:
        assert programs.batched
    files = gguf_files(models, asked.dtype, progress)
    traffic = {name: gguf_traffic(file) for name, file in files.items()}
    threads = asked.threads or torch.get_num_threads()
    runners = {name: LlamaCppRunner(file, programs, threads, asked.device) for name, file in files.items()}
    given = {name for name, file in files.items() if str(file) == str(Path(models[name]).expanduser().absolute())}
    dtypes = [] if given == set(models) else [asked.dtype]
    dtype = " and ".join([*dtypes, *(["GGUF files as they are"] if given else [])])
    return _interleaved("llama.cpp", runners, traffic, asked, threads, dtype, progress)


def _in_vllm(models: Mapping[str, str], asked: Asked, progress: Progress) -> Latency:
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.engines.vllm import find_python
    from ffn_fusion.engines.vllm_bench import Engine as Vllm
    from ffn_fusion.engines.vllm_bench import VllmRunner, options_for, variables_for

    dtype_of(asked.dtype)
    python = find_python(asked.program)
    checkpoints = {name: open_model(place) for name, place in models.items()}
    for name, checkpoint in checkpoints.items():
        check_loads(name, checkpoint, "vllm")
        if checkpoint.spec.heads % asked.tensor_parallel:
            heads, world = checkpoint.spec.heads, asked.tensor_parallel
            raise UsageError(
                f"{name} has {heads} heads, which {world} processes can't share evenly",
                "take a --tensor-parallel that divides them",
            )
    size = torch.finfo(dtype_of(asked.dtype)).bits / 8
    traffic = {name: Traffic.of(checkpoint.spec, size) for name, checkpoint in checkpoints.items()}
    settings = settings_of(asked.batches, asked.contexts, asked.new_tokens)
    kv_bytes = max(
        model.step(s.batch, s.context + s.new_tokens).kv_bytes for model in traffic.values() for s in settings
    )
    threads = asked.threads or max(1, torch.get_num_threads() // asked.tensor_parallel)
    held = sum(model.weight_bytes + kv_bytes + _BESIDE for model in traffic.values())
    keep = held < free_memory(torch.device(asked.device)) / asked.tensor_parallel
    share = _GPU_SHARE / (len(models) if keep else 1)
    engine = Vllm(
        python,
        options_for(settings, asked.dtype, asked.device, asked.tensor_parallel, share),
        variables_for(kv_bytes, threads, asked.tensor_parallel, asked.device),
    )
    vocabulary = min(checkpoint.spec.vocab_size for checkpoint in checkpoints.values())
    runners = {
        name: VllmRunner(checkpoint.folder.absolute(), engine, vocabulary, keep=keep, seed=asked.seed)
        for name, checkpoint in checkpoints.items()
    }
    try:
        found = _interleaved("vllm", runners, traffic, asked, threads, asked.dtype, progress)
        version = next(iter(runners.values())).version
        return found.model_copy(update={"engine": f"vllm {version} on {asked.device}".replace("  ", " ")})
    finally:
        for runner in runners.values():
            runner.close()


_BESIDE = 3 << 29  # what a process of vLLM takes beside weights and KV cache
_GPU_SHARE = 0.9


def check_loads(name: str, checkpoint: Checkpoint, engine: Engine) -> None:
    """Raises: CheckError: the portability rules say that the engine can't load it."""
    if checkpoint.spec.family != "nemotron-nas":
        return
    (found,) = check(checkpoint, [engine])
    if found.problems:
        problem = found.problems[0]
        where = "" if problem.block is None else f"block {problem.block}: "
        hint = "ffn-fusion check --fix writes it as it loads it" if found.verdict == "loads after --fix" else ""
        raise CheckError(f"{engine} can't run {name}: {where}it {problem.reason}", hint or "choose another engine")


def _interleaved(
    engine: str,
    runners: Mapping[str, Runner],
    traffic: Mapping[str, Traffic],
    asked: Asked,
    threads: int,
    dtype: str,
    progress: Progress,
) -> Latency:
    """Time them in turn, and the machine's limits before and after."""
    settings = settings_of(asked.batches, asked.contexts, asked.new_tokens)
    for name, model in traffic.items():
        check_context(name, model.spec, settings)

    def limits() -> Roofline:
        kind = dtype_of(asked.dtype) if asked.dtype in DTYPES else torch.float32
        return measure_roofline(asked.device, kind, threads * asked.tensor_parallel)

    before = limits()
    runs = interleave(runners, settings, asked.rounds, progress)
    roofline = better(before, limits())
    return Latency(
        engine=engine,
        machine=machine(asked.device),
        threads=threads,
        dtype=dtype,
        models=tuple(runners),
        timings=timings_of(runs, traffic, roofline),
        tensor_parallel=asked.tensor_parallel,
        roofline=roofline,
    )


def check_context(name: str, spec: ModelSpec, settings: Sequence[Setting]) -> None:
    """Raises: UsageError: the model isn't made for so many tokens."""
    longest = max(setting.context + setting.new_tokens + 1 for setting in settings)
    most = spec.config.get("max_position_embeddings")
    if isinstance(most, int) and longest > most:
        raise UsageError(
            f"{name} reads {most:,} tokens, and context and new tokens come to {longest:,}",
            "take a smaller --context or fewer --new-tokens",
        )


_ENGINES: Mapping[str, Callable[[Mapping[str, str], Asked, Progress], Latency]] = {
    "transformers": _in_transformers,
    "vllm": _in_vllm,
    "llama.cpp": _in_llama_cpp,
}
