#!/usr/bin/env python3
"""Perplexity of a checkpoint's GGUF files through llama.cpp beside ours, on the same windows of tokens.

    tools/engines/llama_cpp_perplexity.py ENGINE CHECKPOINT TEXT GGUF...

ENGINE is the folder that llama_cpp.sh built. Prints a row a file: perplexity and size.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from ffn_fusion.data.windows import TokenWindows, load_tokenizer, make_windows
from ffn_fusion.evaluation.evaluate import PARENT, evaluate
from ffn_fusion.sources import open_model

CONTEXT, TOKENS = 512, 4096


def main() -> None:
    engine, model, text, *files = sys.argv[1:]
    checkpoint = open_model(model)
    windows = make_windows(load_tokenizer(checkpoint.folder), Path(text), CONTEXT, TOKENS)
    ours = evaluate({PARENT: checkpoint}, [windows])[0].scores[PARENT]
    print(f"{windows.label}: {len(windows.ids_NT)} windows of {CONTEXT} tokens")
    row("ours, float32", ours.perplexity, checkpoint.nbytes)
    for file in map(Path, files):
        row(f"llama.cpp, {file.name}", perplexity(Path(engine), file, windows), file.stat().st_size)


def perplexity(engine: Path, file: Path, windows: TokenWindows) -> float:
    """exp of the mean loss of every token but a window's first, as ours."""
    done = subprocess.run(
        [engine / "build" / "bin" / "llama-losses", file, str(windows.ids_NT.shape[1])],
        input=" ".join(map(str, windows.ids_NT.reshape(-1))).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return math.exp(np.array(done.stdout.split(), np.float64).mean())


def row(name: str, value: float, nbytes: int) -> None:
    print(f"{name:40} {value:9.4f} {nbytes / 1e6:8.1f} MB", flush=True)


if __name__ == "__main__":
    main()
