"""Time models in transformers that several processes of this machine share, and the part of it that all-reduces take.

``measure_tensor_parallel`` starts torchrun on ``lab.tensor_parallel_worker`` and reads what it measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import CheckError
from lab.all_reduces import AllReduceCost, all_reduces, check_divides

_PATIENCE = 3600.0  # seconds
_LAST_LINES = 5
_BENCHMARKS = Path(__file__).parents[1]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardedTiming(_Frozen):
    """The decode steps of one model on all processes.

    Attributes:
        counted: all-reduces of a step by the block pattern.
        measured: all-reduces of a step that torch's profiler saw.
        median_s: seconds of a step, with their 10th and 90th percentile over rounds.
        all_reduce_share: the part of a step spent in all-reduces, waiting for the others included (profiled).
        message_bytes: the bytes that one all-reduce sums.
        speedup: how many times as fast as each other model, as the median of ratios within rounds.
    """

    model: str
    counted: int
    measured: int
    median_s: float
    p10_s: float
    p90_s: float
    all_reduce_share: float
    message_bytes: int
    speedup: dict[str, float]

    @property
    def all_reduce_s(self) -> float:
        """Seconds of a step in all-reduces."""
        return self.median_s * self.all_reduce_share


class BareAllReduce(_Frozen):
    """All-reduces alone, one after the other."""

    nbytes: int
    median_s: float


class TensorParallel(_Frozen):
    """The timings of all models, which took turns in every round."""

    engine: str
    machine: str
    backend: str
    processes: int
    threads: int
    dtype: str
    batch: int
    context: int
    new_tokens: int
    rounds: int
    timings: tuple[ShardedTiming, ...]
    bare: tuple[BareAllReduce, ...]
    cost: AllReduceCost


def measure_tensor_parallel(
    models: Mapping[str, Path],
    processes: int = 2,
    *,
    batch: int = 1,
    context: int = 32,
    new_tokens: int = 8,
    rounds: int = 5,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
) -> TensorParallel:
    """Time decode steps of several models, each shared by ``processes`` processes; all take turns in every round.

    Args:
        models: name -> checkpoint folder.
        device: cpu (gloo), or cuda (nccl, one GPU for each process).
        threads: threads of each process.

    Raises:
        CheckError: the processes can't share a model's heads evenly, or one of them failed.
    """
    counts = {}
    for name, folder in models.items():
        spec = open_folder(folder).spec
        check_divides(spec, processes)
        counts[name] = all_reduces(spec)
    asked = {
        "models": {name: str(folder) for name, folder in models.items()},
        "counts": counts,
        "batch": batch,
        "context": context,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "dtype": dtype,
        "device": device,
        "threads": threads,
    }
    return TensorParallel.model_validate(_torchrun("lab.tensor_parallel_worker", asked, processes, threads))


def _torchrun(module: str, asked: dict[str, Any], processes: int, threads: int) -> Any:
    """Run ``module`` under torchrun and return the answer of its first process; see its ``main``."""
    with TemporaryDirectory(prefix="ffn-fusion-") as place:
        question, answer = Path(place) / "asked.json", Path(place) / "answer.json"
        question.write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [*command, "-m", module, str(question), str(answer)],
            capture_output=True,
            text=True,
            env=_environment(threads),
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode or not answer.exists():
            raise CheckError(f"tensor parallel: {_reason(done.stderr)}", "the message above is the process's own")
        return json.loads(answer.read_text(encoding="utf-8"))


def _environment(threads: int) -> dict[str, str]:
    outer = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    path = os.pathsep.join(filter(None, [str(_BENCHMARKS), os.environ.get("PYTHONPATH")]))
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return inherited | fixed


def _reason(stderr: str) -> str:
    """Find the last line of the process's exception, before torchrun's own report."""
    lines = [line.strip() for line in stderr.splitlines()]
    errors: Sequence[str] = [line for line in lines if "Error: " in line and "ChildFailedError" not in line]
    return (errors or lines[-_LAST_LINES:] or ["no answer"])[0]
