"""vLLM as tools/engines/vllm.sh installs it: where it is, and what it computes from checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

VARIABLE = "FFN_FUSION_VLLM"
ENGINE = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / ".engines" / "vllm")
PYTHON = ENGINE / "bin" / "python"
PROBE = Path(__file__).parent / "vllm_probe.py"

needs_vllm = pytest.mark.skipif(
    not (ENGINE / "ffn-fusion").is_file(), reason=f"no vLLM in {ENGINE}: run tools/engines/vllm.sh, or set {VARIABLE}"
)


@dataclass(frozen=True)
class Asked:
    """Prompts of token ids for one checkpoint, and how many tokens shall follow each."""

    folder: str
    prompts: Sequence[Sequence[int]]
    new: int = 8
    dtype: str = "float32"


@dataclass(frozen=True)
class Answer:
    """What vLLM said of one prompt: see vllm_probe.py."""

    given: list[float]
    best: list[int]
    new: list[int]


@dataclass(frozen=True)
class Said:
    """The answer to each prompt, or the error; ``ours``: whether vLLM had imported our package."""

    answers: tuple[Answer, ...]
    error: str
    ours: bool


def environment(**changes: str) -> dict[str, str]:
    """One thread and a KV cache of 1 GB, and the model in this very process; nothing asked of the network."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "PYTHON"))},
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **changes,
    }


def ask(models: Mapping[str, Asked], options: Mapping[str, Any], **changes: str) -> dict[str, Said]:
    """What vLLM says of each checkpoint, in one go; ``options`` are vllm.LLM's, ``changes`` environment variables."""
    with TemporaryDirectory() as folder:
        request, target = Path(folder, "request.json"), Path(folder, "answer.json")
        asked = {name: asdict(model) for name, model in models.items()}
        request.write_text(json.dumps({"options": dict(options), "models": asked}))
        command = [PYTHON, PROBE, request, target]
        done = subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(target.read_text())
    return {name: _said(one["said"], one["ours"]) for name, one in found.items()}


def _said(said: Any, ours: bool) -> Said:
    if isinstance(said, str):
        return Said((), said, ours)
    return Said(tuple(Answer(**answer) for answer in said), "", ours)
