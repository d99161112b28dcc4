"""llama.cpp as tools/engines/llama_cpp.sh builds it: where it is, and what it says of a GGUF file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ffn_fusion.engines.answers import Answers
from ffn_fusion.engines.llama_cpp import answers, served

VARIABLE = "FFN_FUSION_LLAMA_CPP"
ENGINE = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / ".engines" / "llama.cpp")
SERVER = ENGINE / "build" / "bin" / "llama-server"
BENCH = ENGINE / "build" / "bin" / "llama-bench"
QUANTIZE = ENGINE / "build" / "bin" / "llama-quantize"
CONVERTER = ENGINE / "src" / "convert_hf_to_gguf.py"
VOCABULARIES = ENGINE / "src" / "models"

needs_llama_cpp = pytest.mark.skipif(
    not SERVER.is_file(), reason=f"no llama.cpp in {ENGINE}: run tools/engines/llama_cpp.sh, or set {VARIABLE}"
)
os.environ.setdefault("LLAMA_ARG_THREADS", "1")  # tiny models: threads would wait for one another


def ask(model: Path, ids: Sequence[int], new: int, likeliest: int) -> Answers:
    """What llama.cpp says of one prompt; ``CheckError`` where it gives up."""
    with served(model, SERVER, context=len(ids) + new + 1) as llama:
        return answers(llama, torch.tensor([list(ids)]), new, likeliest)


def tokens(model: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, no special tokens added."""
    with served(model, SERVER, context=64) as llama:
        return [llama.tokens(text) for text in texts]


def pretended_programs(folder: Path) -> Path:
    """llama-bench and llama-batched-bench that measure nothing, beside a log of their calls; the first one's path."""
    source = (Path(__file__).parent / "fake_llama_bench.py").read_text()
    folder.mkdir()
    for name in ("llama-bench", "llama-batched-bench"):
        (folder / name).write_text(f"#!{sys.executable}\n{source}")
        (folder / name).chmod(0o755)
    return folder / "llama-bench"
