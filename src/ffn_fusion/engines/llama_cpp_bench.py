"""Time llama.cpp with its own programs: llama-bench for one sequence, llama-batched-bench for several at once.

Each call of a program is one round: it loads the file, warms up and measures once, so that models can alternate.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch

from ffn_fusion.engines.bench_settings import DTYPES, check_contexts, dtype_of
from ffn_fusion.engines.gguf_files import gguf_files, gguf_traffic
from ffn_fusion.engines.llama_cpp import find_program, last_word
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.errors import CheckError, MissingExtraError, UsageError
from ffn_fusion.latency.interleave import Measurement, Workload
from ffn_fusion.latency.measure import time_in_turn, workloads_of
from ffn_fusion.latency.timing import Latency
from ffn_fusion.processes import Progress
from ffn_fusion.programs import check_signal, program_on_path

PROGRAM, BATCHED = "llama-bench", "llama-batched-bench"
VARIABLE = "LLAMA_BENCH"

_HINT = "ffn-fusion check OUT --for-engine llama.cpp says what it can't run"
_STEP = 0.01
_ATTEMPTS = 5


@dataclass(frozen=True)
class Programs:
    """llama-bench, and llama-batched-bench beside it or on the PATH."""

    bench: Path

    @property
    def batched(self) -> Path:
        """llama-batched-bench. Raises: MissingExtraError: it isn't there."""
        beside = self.bench.with_name(BATCHED)
        found = beside if beside.is_file() else program_on_path(BATCHED)
        if found is None:
            raise MissingExtraError(
                f"batches are timed by llama.cpp's {BATCHED}, which isn't beside {self.bench}",
                "build that target of llama.cpp too (tools/engines/llama_cpp.sh does), or time --batch 1 alone",
            )
        return found


def find_programs(given: Path | None) -> Programs:
    """Find llama-bench: the given one, else $LLAMA_BENCH, else the one on the PATH.

    Raises:
        UsageError: the given one isn't a program. MissingExtraError: there is none.
    """
    return Programs(find_program(PROGRAM, given, VARIABLE, "timed"))


def bench_llama_cpp(models: Mapping[str, str], asked: BenchRequest, progress: Progress) -> Latency:
    """Time models in llama.cpp; see ``bench.bench_in``."""
    if asked.tensor_parallel > 1:
        raise UsageError("llama.cpp is timed in one process", "take --engine vllm for --tensor-parallel")
    programs = find_programs(asked.engine_program)
    if max(asked.batches) > 1:
        assert programs.batched
    files = gguf_files(models, asked.dtype, progress, asked.files)
    traffic = {name: gguf_traffic(file) for name, file in files.items()}
    threads = asked.threads or torch.get_num_threads()
    runners = {name: LlamaCppRunner(file, programs, threads, asked.device) for name, file in files.items()}
    given = {name for name, file in files.items() if str(file) == str(Path(models[name]).expanduser().absolute())}
    dtypes = [] if given == set(models) else [asked.dtype]
    dtype = " and ".join([*dtypes, *(["GGUF files as they are"] if given else [])])
    workloads = workloads_of(asked.batches, asked.contexts, asked.new_tokens)
    check_contexts({name: model.spec for name, model in traffic.items()}, workloads)
    return time_in_turn(
        "llama.cpp",
        runners,
        traffic,
        workloads,
        rounds=asked.rounds,
        device=asked.device,
        dtype=dtype,
        product_dtype=dtype_of(asked.dtype) if asked.dtype in DTYPES else torch.float32,
        threads=threads,
        progress=progress,
    )


class LlamaCppRunner:
    """A ``Runner`` of ``interleave`` for a GGUF file."""

    def __init__(self, file: Path, programs: Programs, threads: int, device: str) -> None:
        self._file = file
        self._programs = programs
        where = ("-dev", "none") if device == "cpu" else ()
        self._words = ("-m", str(file), "-t", str(threads), *where)
        self._on_cpu = device == "cpu"

    def warm_up(self, workload: Workload) -> int | None:
        """Measure once without counting it; pages of the file that were read count as memory."""
        peak = max(self._timed(workload)[1])
        return peak or None if self._on_cpu else None

    def run(self, workload: Workload) -> Measurement:
        return self._timed(workload)[0]

    def _timed(self, workload: Workload) -> tuple[Measurement, list[int]]:
        if workload.batch > 1:
            return self._batched(workload)
        once = ("-r", "1", "-o", "json")
        context, new = str(workload.context), str(workload.new_tokens)
        prefill, first = self._call(self._programs.bench, (*once, "-p", context, "-n", "0"))
        decode, second = self._call(self._programs.bench, (*once, "-p", "0", "-n", new, "-d", context))
        return Measurement(*(json.loads(out)[0]["samples_ns"][0] / 1e9 for out in (prefill, decode))), [first, second]

    def _batched(self, workload: Workload) -> tuple[Measurement, list[int]]:
        room = workload.batch * (workload.context + workload.new_tokens + 1)
        sizes = {"-npp": workload.context, "-ntg": workload.new_tokens, "-npl": workload.batch, "-c": room}
        words = [str(word) for pair in sizes.items() for word in pair]
        out, peak = self._call(self._programs.batched, (*words, "--output-format", "jsonl"))
        (found,) = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
        return Measurement(found["t_pp"], found["t_tg"]), [peak]

    def _call(self, program: Path, words: tuple[str, ...]) -> tuple[str, int]:
        """Return a program's output and its peak memory. The output is sometimes lost, when the program ends before the
        thread that writes it; then it runs again.

        Raises:
            CheckError: it failed.
        """
        for _ in range(_ATTEMPTS):
            said, peak = self._once(program, words)
            if "{" in said:
                return said, peak
        raise CheckError(f"llama.cpp's {program.name} printed nothing about {self._file.name}", "try another llama.cpp")

    def _once(self, program: Path, words: tuple[str, ...]) -> tuple[str, int]:
        with TemporaryFile("w+") as out, TemporaryFile("w+") as log:
            running = subprocess.Popen([str(program), *self._words, *words], stdout=out, stderr=log)
            try:
                peak = _watched(running)
            finally:
                running.kill()
                running.wait()
            out.seek(0)
            log.seek(0)
            said = out.read()
            check_signal(program.name, running.returncode)
            if running.returncode:
                raise CheckError(f"llama.cpp can't run {self._file.name}: {last_word(log.read())}", _HINT)
        return said, peak


def _watched(running: subprocess.Popen[bytes]) -> int:
    """Wait for the program to end; return its largest resident set, or 0 if the system doesn't report it."""
    status, peak = Path(f"/proc/{running.pid}/status"), 0
    while running.poll() is None:
        try:
            found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        except OSError:
            found = None
        peak = max(peak, int(found[1]) << 10) if found else peak
        time.sleep(_STEP)
    return peak
