"""The second part of the analysis benchmark: a model larger than the memory it's given, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from random_llama import TINY, forget, llama_config

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.checkpoint.random_model import write_byte_tokenizer, write_random_model
from ffn_fusion.checkpoint.reader import open_folder

LARGE = {
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 66,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "vocab_size": 32768,
}


def large(work: Path, quick: bool) -> dict[str, float]:
    text = work / "text.txt"
    text.write_text(" ".join(f"word{i * 7919 % 1000}" for i in range(400)), encoding="utf-8")
    small = random_model(work / "tiny", TINY)
    run_small = command(small, text, work / "tiny-evidence")
    small_plan = json.loads(watched([*run_small, "--dry-run"]).output)
    beside = watched(run_small).bytes_read - open_folder(small).nbytes - small_plan["moved_bytes"] // 2
    folder, out = random_model(work / "large", TINY if quick else LARGE), work / "evidence"
    plan = json.loads(watched([*command(folder, text, out), "--dry-run"]).output)
    forget(folder)
    done = watched(command(folder, text, out))
    blocks, weights = len(open_folder(folder).spec.blocks), open_folder(folder).nbytes
    if not np.isfinite(Evidence.load(out).dependency("block")[np.triu_indices(blocks, 1)]).all():
        sys.exit("error: the dependency matrix holds numbers that aren't finite")
    return {
        "checkpoint_gb": weights / 1e9,
        "seconds": done.seconds,
        "estimated_seconds": plan["seconds"],
        "estimate_error": abs(done.seconds / plan["seconds"] - 1),
        "peak_rss_gib": done.peak_rss / 2**30,
        "estimated_peak_gib": plan["peak_memory_bytes"] / 2**30,
        "weights_read_ratio": (done.bytes_read - beside - plan["moved_bytes"] // 2) / weights,
        "estimated_weights_read_ratio": plan["weight_bytes_read"] / weights,
        "passes": plan["passes"],
        "chunks": plan["chunks"],
        "spilled_gb": plan["spilled_bytes"] / 1e9,
    }


def random_model(folder: Path, sizes: Mapping[str, int]) -> Path:
    write_random_model(folder, llama_config(**sizes), shard_bytes=1 << 30)
    write_byte_tokenizer(folder)
    return folder


def command(folder: Path, text: Path, out: Path) -> list[Any]:
    words = [Path(sys.executable).with_name("ffn-fusion"), "analyze", folder, "-o", out, "--memory", "4GiB"]
    words += ["--parts", "block,attention", "--scores", "attention", "--max-run", "1"]
    return [*words, "--tokens", 4 * 32, "--context", 32, "--text", text, "--json"]


@dataclass(frozen=True)
class Watched:
    """What a process took and wrote to its standard output."""

    seconds: float
    peak_rss: int
    bytes_read: int
    output: str


def watched(words: list[Any]) -> Watched:
    """Run a command to its end. Its memory is asked for again and again, since the system forgets it at the end (what
    it then still says, ru_maxrss, holds this process's own memory from the moment of the start)."""
    with tempfile.TemporaryFile("w+") as output:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen([*map(str, words)], stdout=output)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = max(peak, about(process.pid, "status").get("VmHWM", 0) * 1024)
            time.sleep(0.05)
        seconds, read = time.perf_counter() - start, about(process.pid, "io")["rchar"]
        if process.wait():
            sys.exit(f"error: {' '.join(map(str, words))}: exit status {process.returncode}")
        output.seek(0)
        return Watched(seconds, peak, read, output.read())


def about(process: int, what: str) -> dict[str, int]:
    """The numbers in a file of /proc."""
    pairs = (line.split()[:2] for line in Path(f"/proc/{process}/{what}").read_text(encoding="ascii").splitlines())
    return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
