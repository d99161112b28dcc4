"""k-quants by llama.cpp's own llama-quantize: which ones there are, where the program is, and running it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from math import prod
from pathlib import Path

from ffn_fusion.errors import MissingExtraError, OutputError
from ffn_fusion.gguf.tensors import GgufOutput
from ffn_fusion.programs import check_signal, named_program, program_on_path

PROGRAM = "llama-quantize"
VARIABLE = "LLAMA_QUANTIZE"

_BITS = {
    "q4_0": 4.5,
    "q4_1": 5.0,
    "q5_0": 5.5,
    "q5_1": 6.0,
    "q2_k": 3.0,
    "q3_k_s": 3.6,
    "q3_k_m": 4.0,
    "q3_k_l": 4.3,
    "q4_k_s": 4.7,
    "q4_k_m": 5.0,
    "q5_k_s": 5.6,
    "q5_k_m": 5.8,
    "q6_k": 6.6,
    "iq4_nl": 4.6,
    "iq4_xs": 4.4,
}
"""dtype -> bits a weight, about: llama-quantize gives some matrices more. Those that need statistics of texts (an
importance matrix) aren't among them."""

QUANTIZED = tuple(_BITS)


def quantized_bytes(tensors: Sequence[GgufOutput], dtype: str) -> int:
    """About how many bytes the weights come to."""
    return int(sum(prod(tensor.shape) for tensor in tensors) * _BITS[dtype] / 8)


def find_quantizer(given: Path | None, dtype: str) -> Path:
    """llama-quantize: the one that is given, else $LLAMA_QUANTIZE, else the one on the PATH.

    Raises:
        UsageError: the one given isn't a program. MissingExtraError: there is none.
    """
    named = named_program(f"llama.cpp's {PROGRAM}", given, "--llama-quantize", VARIABLE)
    found = named or program_on_path(PROGRAM)
    if found is None:
        raise MissingExtraError(
            f"{dtype} is written by llama.cpp's {PROGRAM}, which isn't on the PATH",
            f"install llama.cpp (tools/engines/llama_cpp.sh builds it) and give --llama-quantize PATH or ${VARIABLE}; "
            "f32, f16, bf16 and q8_0 need no program",
        )
    return found


def run_quantizer(program: Path, source: Path, target: Path, dtype: str) -> None:
    """``source`` -> ``target`` in another dtype.

    Raises:
        OutputError: the program failed, with its last word. CheckError: a signal ended it.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [str(program), str(source), str(target), dtype.upper(), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise OutputError(f"{program}: {error.strerror}", f"give another {PROGRAM}") from error
    check_signal(PROGRAM, done.returncode)
    if done.returncode:
        said = (done.stderr + done.stdout).decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {done.returncode}")
        raise OutputError(f"{program} failed: {last}", "choose another dtype, or another build of llama.cpp")
