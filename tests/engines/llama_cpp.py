"""llama.cpp as tools/engines/llama_cpp.sh builds it: where it is, and what it says of a GGUF file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

VARIABLE = "FFN_FUSION_LLAMA_CPP"
ENGINE = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / ".engines" / "llama.cpp")
PROBE = ENGINE / "build" / "bin" / "llama-probe"
QUANTIZE = ENGINE / "build" / "bin" / "llama-quantize"
CONVERTER = ENGINE / "src" / "convert_hf_to_gguf.py"
VOCABULARIES = ENGINE / "src" / "models"

needs_llama_cpp = pytest.mark.skipif(
    not PROBE.is_file(), reason=f"no llama.cpp in {ENGINE}: run tools/engines/llama_cpp.sh, or set {VARIABLE}"
)


def probe(mode: str, model: Path, given: bytes, *words: int) -> bytes:
    """What the probe prints; ``subprocess.CalledProcessError`` where llama.cpp gives up."""
    command = [PROBE, mode, model, *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=600).stdout


def logits(model: Path, ids: Sequence[int]) -> Tensor:
    """Logits of every position, [T, V] in float32."""
    raw = np.frombuffer(probe("logits", model, _words(ids)), "<f4")
    return torch.from_numpy(raw.reshape(len(ids), -1).copy())


def greedy(model: Path, ids: Sequence[int], count: int) -> list[int]:
    """The ``count`` likeliest next tokens, one after another."""
    return [int(word) for word in probe("greedy", model, _words(ids), count).split()]


def tokens(model: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, no special tokens added."""
    lines = probe("tokens", model, b"".join(text.encode() + b"\0" for text in texts)).split(b"\n")
    return [[int(word) for word in line.split()] for line in lines[: len(texts)]]


def _words(ids: Sequence[int]) -> bytes:
    return " ".join(map(str, ids)).encode()
