"""Runs in vLLM's own environment, and imports nothing of ours: a loaded model that answers one request after another.

python vllm_bench_probe.py OPTIONS.json

OPTIONS: arguments of vllm.LLM. Standard output: a JSON line {"version"} when the model is loaded. Then a line for each
line of standard input: {"batch", "context", "new_tokens", "vocabulary", "seed"} -> {"prefill_s", "decode_s", "memory"},
the peak of memory of this process and those it started, None where it isn't known. {"error"} where something failed.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any, TextIO

REQUESTS = count()


def timed(engine: Any, asked: dict[str, Any]) -> dict[str, float]:
    """Seconds until every sequence has its first token, and from there until all have the others."""
    from vllm import SamplingParams

    new = asked["new_tokens"] + 1
    params = SamplingParams(max_tokens=new, min_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False)
    draw = random.Random(asked["seed"])
    prompts = [draw.choices(range(asked["vocabulary"]), k=asked["context"]) for _ in range(asked["batch"])]
    names = [str(next(REQUESTS)) for _ in prompts]
    began = time.perf_counter()
    for name, ids in zip(names, prompts, strict=True):
        engine.add_request(name, {"prompt_token_ids": ids}, params)
    have: dict[str, int] = dict.fromkeys(names, 0)
    first = 0.0
    while engine.has_unfinished_requests():
        for out in engine.step():
            have[out.request_id] = len(out.outputs[0].token_ids)
        if not first and all(have.values()):
            first = time.perf_counter()
    ended = time.perf_counter()
    assert set(have.values()) == {new}, f"{new} tokens each were asked for, and {have} came"
    return {"prefill_s": first - began, "decode_s": ended - first}


def peak_memory(device: str) -> int | None:
    """Bytes: on a GPU what PyTorch held at most, else the resident set of this process and all below it."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated()) or None  # 0 where the model lies in other processes
    status = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_text()
        except OSError:  # it ended meanwhile
            continue
        fields = dict(re.findall(r"^(PPid|VmHWM):\s*(\d+)", text, re.MULTILINE))
        status[int(path.parent.name)] = (int(fields["PPid"]), int(fields.get("VmHWM", 0)) << 10)
    mine, total = {os.getpid()}, 0
    while mine:
        total += sum(status[pid][1] for pid in mine if pid in status)
        mine = {pid for pid, (parent, _) in status.items() if parent in mine}
    return total or None


def serve(options: dict[str, Any], answers: TextIO) -> None:
    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        import vllm

        device = options.pop("device")
        engine = vllm.LLM(**options).llm_engine
        say({"version": vllm.__version__})
        for line in sys.stdin:
            say({**timed(engine, json.loads(line)), "memory": peak_memory(device)})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})


if __name__ == "__main__":  # vLLM's own processes import this file
    mine = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints isn't an answer
    serve(json.loads(Path(sys.argv[1]).read_text()), mine)
