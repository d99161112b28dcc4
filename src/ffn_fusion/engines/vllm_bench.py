"""Time vLLM: one worker per model in vLLM's own Python, all loaded at once if memory allows, and asked in turn.

vLLM's own ``vllm bench latency`` restarts the engine for each measurement, which takes longer than measuring, and
doesn't report the time to the first token. The workers do what it does (random prompts, greedy decoding to the end) and
read the clock at the first tokens. A worker is stopped (SIGSTOP) while others are asked, since idle vLLM processes
spin.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import torch

from ffn_fusion.blockwise.room import free_memory
from ffn_fusion.engines.bench_settings import check_contexts, check_loads, dtype_of
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.engines.vllm import environment, find_python, refusal
from ffn_fusion.errors import UsageError
from ffn_fusion.latency.interleave import Measurement, Workload
from ffn_fusion.latency.machine import core_numbers
from ffn_fusion.latency.measure import time_in_turn, workloads_of
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.processes import Progress
from ffn_fusion.programs import check_signal
from ffn_fusion.sources import open_model

PROBE = Path(__file__).parent / "probes" / "vllm_bench_probe.py"
_BESIDE = 3 << 29  # memory of a vLLM process besides weights and KV cache
_GPU_SHARE = 0.9


@dataclass(frozen=True)
class Engine:
    """How vLLM is started.

    Args:
        options: arguments of vllm.LLM, except for the model.
        variables: environment variables.
    """

    python: Path
    options: dict[str, Any]
    variables: dict[str, str]


def bench_vllm(models: Mapping[str, str], asked: BenchRequest, progress: Progress) -> Latency:
    """Time models in vLLM; see ``bench.bench_in``."""
    dtype_of(asked.dtype)
    python = find_python(asked.engine_program)
    checkpoints = {name: open_model(place) for name, place in models.items()}
    for name, checkpoint in checkpoints.items():
        check_loads(name, checkpoint, "vllm")
        world = asked.tensor_parallel
        if uneven := [heads for heads in checkpoint.spec.head_counts if heads % world]:
            raise UsageError(
                f"{name} has {uneven[0]} heads, which {world} processes can't share evenly",
                "take a --tensor-parallel that divides them",
            )
    size = torch.finfo(dtype_of(asked.dtype)).bits / 8
    traffic = {name: Traffic.of(checkpoint.spec, size) for name, checkpoint in checkpoints.items()}
    workloads = workloads_of(asked.batches, asked.contexts, asked.new_tokens)
    check_contexts({name: checkpoint.spec for name, checkpoint in checkpoints.items()}, workloads)
    kv_bytes = max(
        model.step(w.batch, w.context + w.new_tokens).kv_bytes for model in traffic.values() for w in workloads
    )
    threads = asked.threads or max(1, torch.get_num_threads() // asked.tensor_parallel)
    keep = _fit(traffic.values(), kv_bytes, asked)
    share = _GPU_SHARE / (len(models) if keep else 1)
    engine = Engine(
        python,
        options_for(workloads, asked.dtype, asked.device, asked.tensor_parallel, share),
        variables_for(kv_bytes, threads, asked.tensor_parallel, asked.device),
    )
    vocabulary = min(checkpoint.spec.vocab_size for checkpoint in checkpoints.values())
    runners = {
        name: VllmRunner(checkpoint.own_folder("vLLM").absolute(), engine, vocabulary, keep=keep, seed=asked.seed)
        for name, checkpoint in checkpoints.items()
    }
    try:
        found = time_in_turn(
            "vllm",
            runners,
            traffic,
            workloads,
            rounds=asked.rounds,
            device=asked.device,
            dtype=asked.dtype,
            product_dtype=dtype_of(asked.dtype),
            threads=threads,
            tensor_parallel=asked.tensor_parallel,
            progress=progress,
        )
        version = next(iter(runners.values())).version
        return found.model_copy(update={"engine": f"vllm {version} on {asked.device}".replace("  ", " ")})
    finally:
        for runner in runners.values():
            runner.close()


def _fit(models: Iterable[Traffic], kv_bytes: float, asked: BenchRequest) -> bool:
    """Return whether vLLM can hold all models at once, in this machine's memory or on its GPUs."""
    on_cpu = asked.device == "cpu"
    processes, divisor = (asked.tensor_parallel, 1) if on_cpu else (1, asked.tensor_parallel)
    held = sum((model.weight_bytes + kv_bytes) / divisor + processes * _BESIDE for model in models)
    return held < free_memory(torch.device(asked.device))


class VllmRunner:
    """A ``Runner`` of ``interleave`` for a checkpoint folder, in a worker of its own.

    Args:
        keep: keep the worker while other models run; otherwise it is restarted for every run.
    """

    def __init__(self, folder: Path, engine: Engine, vocabulary: int, *, keep: bool, seed: int = 0) -> None:
        self._folder = folder
        self._engine = engine
        self._vocabulary = vocabulary
        self._keep = keep
        self._seed = seed
        self._worker: _Worker | None = None

    def warm_up(self, workload: Workload) -> int | None:
        memory: int | None = self._ask(workload)["memory"]
        return memory

    def run(self, workload: Workload) -> Measurement:
        if not self._keep:
            self._ask(workload, last=False)
        found = self._ask(workload)
        return Measurement(found["prefill_s"], found["decode_s"])

    @property
    def version(self) -> str:
        """The version of vLLM, once the model has been loaded."""
        return self._worker.version if self._worker else ""

    def close(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None

    def _ask(self, workload: Workload, *, last: bool = True) -> dict[str, Any]:
        if self._worker is None:
            self._worker = _Worker(self._folder, self._engine)
        sizes = {"batch": workload.batch, "context": workload.context, "new_tokens": workload.new_tokens}
        found = self._worker.ask({**sizes, "vocabulary": self._vocabulary, "seed": self._seed})
        if last and not self._keep:
            self.close()
        return found


class _Worker:
    """The probe with a model loaded, and every process that it started: a process group of its own.

    Raises:
        CheckError: vLLM doesn't start, or can't load the model.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._log = TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self._place = TemporaryDirectory(prefix="ffn-fusion-")
        options = Path(self._place.name) / "options.json"
        options.write_text(json.dumps({**engine.options, "model": str(folder)}))
        self._process = subprocess.Popen(
            [str(engine.python), str(PROBE), str(options)],
            env=environment(**engine.variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            process_group=0,  # if this process dies, the system wakes and ends the orphaned, stopped workers
        )
        self.version = ""
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended, as the answer will say
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        found = self._answer()
        self._signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._log.close()
        self._place.cleanup()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            check_signal("vllm", self._process.wait())
        found: dict[str, Any] = json.loads(line) if line else {"error": f"it ended: {self._last_word()}"}
        if "error" in found:
            raise refusal(found["error"])
        return found

    def _signal(self, which: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, which)

    def _last_word(self) -> str:
        self._log.seek(0)
        return next((line.strip() for line in reversed(self._log.read().splitlines()) if line.strip()), "no word")


def options_for(
    workloads: list[Workload], dtype: str, device: str, tensor_parallel: int, gpu_share: float
) -> dict[str, Any]:
    """Return arguments of vllm.LLM: just enough room for the workloads, a prefill in one step, nothing cached between
    requests. On a CPU the model isn't compiled, which would take minutes.
    """
    options = {
        "device": "cpu" if device == "cpu" else "cuda",  # for the probe
        "dtype": dtype,
        "trust_remote_code": False,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "enforce_eager": device == "cpu",
        "max_model_len": max(w.context + w.new_tokens + 1 for w in workloads),
        "max_num_seqs": max(w.batch for w in workloads),
        "max_num_batched_tokens": max(2048, *(w.batch * w.context for w in workloads)),
        "tensor_parallel_size": tensor_parallel,
        "disable_log_stats": True,
    }
    return options | ({} if device == "cpu" else {"gpu_memory_utilization": gpu_share})


def variables_for(kv_bytes: float, threads: int, tensor_parallel: int, device: str) -> dict[str, str]:
    """Return environment variables: on a CPU, the size of the KV cache in GiB, and the cores of each process."""
    found = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # requests are answered in the worker itself, step by step
    if device != "cpu":
        return found
    bind = "nobind"
    if tensor_parallel > 1:
        cores = core_numbers()
        shares = (cores[k * threads : (k + 1) * threads] for k in range(tensor_parallel))
        bind = "|".join(",".join(map(str, share)) for share in shares)
    return found | {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, -(-int(1.25 * kv_bytes) // (1 << 30)))),
        "VLLM_CPU_OMP_THREADS_BIND": bind,
        "OMP_NUM_THREADS": str(threads),
    }
