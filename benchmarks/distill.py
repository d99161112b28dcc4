"""Distillation against the sum of its parts: plain training of the same child, and the parent's forward pass.

Every variant is a process of its own, so that its peak of memory is its own; rounds go through them in turn.
student: transformers' Trainer, language-model loss, the model's own head and loss. teacher: the parent forward, with
all logits. distill: KL and cosine, the parent beside the child. kl: KL alone. cached: KL from the parent's 64 likeliest
tokens, kept on disk (written before the clock runs). A variant's seconds are the median step of 8 windows.

Ratios are of tokens a second: parts / distill with the seconds of student and teacher added up, student / cached; of
memory likewise, with the teacher's weights and states beside the student.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import finish
from random_llama import TINY, llama_config

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.random_model import write_random_model
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.distillation.distill import distill_child
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.training import Training
from ffn_fusion.modeling.load import load_model
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.build import build

MODEL = Path(__file__).parents[1] / ".demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"
VARIANTS = ("student", "teacher", "distill", "kl", "cached")
BATCH = 8
ONLINE, CACHED = 0.9, 0.95


def main() -> None:
    options = _options()
    if options.variant:
        print(json.dumps(_measure(options.variant, options.folder, options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        place = Path(name)
        _make(place, options.quick)
        rounds = [{v: _apart(v, place, options) for v in VARIANTS} for _ in range(options.rounds)]
    tokens = BATCH * options.context
    figures: dict[str, float] = {}
    for variant in VARIANTS:
        seconds = median(r[variant]["seconds"] for r in rounds)
        figures[f"{variant} tokens/s"] = tokens / seconds
        figures[f"{variant} peak GiB"] = median(r[variant]["peak"] for r in rounds) / 2**30
    figures |= {
        name: median(_seconds(r, *above) / _seconds(r, below) for r in rounds)
        for name, above, below in (
            ("distill / parts", ("student", "teacher"), "distill"),
            ("kl / parts", ("student", "teacher"), "kl"),
            ("cached / student", ("student",), "cached"),
        )
    }
    figures["memory: distill / parts"] = median(_memory(r) for r in rounds)
    reached = figures["distill / parts"] >= ONLINE and figures["cached / student"] >= CACHED
    notes = {
        "shapes": f"{BATCH} windows of {options.context}, {options.micro} at a time, {options.steps} steps",
        "dtype": "bfloat16" if options.bf16 else "float32",
        "wanted": f"distill / parts >= {ONLINE}, cached / student >= {CACHED}",
        "threads": str(torch.get_num_threads()),
    }
    finish("distill", figures, {"memory: distill / parts": 1.0}, options.quick or reached, notes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--micro", type=int, default=2, help="windows at a time")
    parser.add_argument("--steps", type=int, default=4, help="that are measured, after one that isn't")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.context, options.rounds, options.steps = 16, 1, 2
    return options


def _seconds(found: Mapping[str, Mapping[str, float]], *variants: str) -> float:
    return sum(found[variant]["seconds"] for variant in variants)


def _memory(found: Mapping[str, Mapping[str, float]]) -> float:
    """The interpreter with its libraries stands in both parts, and counts once."""
    parts = found["student"]["peak"] + found["teacher"]["peak"] - found["teacher"]["start"]
    return found["distill"]["peak"] / parts


def _make(place: Path, quick: bool) -> None:
    """The parent, and a child of it with attentions dropped in two runs and FFNs fused."""
    if quick:
        write_random_model(place / "parent", llama_config(**TINY), shard_bytes=1 << 30)
        parent, dropped, fused = open_folder(place / "parent"), [2, 3], [(2, 3)]
    else:
        parent = open_model(str(MODEL))
        (place / "parent").symlink_to(parent.folder)
        dropped, fused = [*range(5, 11), *range(17, 21)], [(5, 9), (17, 19)]
    blueprint = Blueprint.identity(parent.spec.parent(parent.name)).apply(dropped, fused)
    build(parent, blueprint, place / "child", width_multiple=1)


def _apart(variant: str, place: Path, options: argparse.Namespace) -> dict[str, float]:
    words = [f"--{name}={getattr(options, name)}" for name in ("context", "micro", "steps")]
    words += ["--bf16"] * options.bf16
    command = [sys.executable, __file__, f"--variant={variant}", f"--folder={place}", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])  # the Trainer prints, too
    return found


def _measure(variant: str, place: Path, options: argparse.Namespace) -> dict[str, float]:
    parent = open_folder((place / "parent").resolve())
    shape = ((options.steps + 1) * BATCH, options.context)
    ids = np.random.default_rng(0).integers(3, parent.spec.vocab_size, shape)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run: dict[str, Callable[[], list[float]]] = {
        "student": lambda: _student(place, ids, options),
        "teacher": lambda: _teacher(parent, ids, options),
    }
    times = run[variant]() if variant in run else _ours(variant, place, parent, ids, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": median(np.diff(times).tolist()), "peak": peak, "start": start}


def _ours(variant: str, place: Path, parent: Checkpoint, ids: Any, options: argparse.Namespace) -> list[float]:
    settings = DistillSettings(
        objective=Objective(cosine=float(variant == "distill")),
        batch=BATCH,
        micro=options.micro,
        bf16=options.bf16,
        save_every=options.steps + 1,
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory(dir=place) as work:
        distill_child(
            Training(
                place / "child",
                parent,
                [TokenWindows("random", ids)],
                Path(work) / "work",
                settings=settings,
                teacher_dtype=torch.bfloat16 if options.bf16 else torch.float32,
                cache=CacheSettings(place / "cache", DistillSettings().top_k) if variant == "cached" else None,
            ),
            progress=lambda what, done, total: times.append(time.perf_counter()) if what == "distillation" else None,
        )
    return times[1:]


def _student(place: Path, ids: Any, options: argparse.Namespace) -> list[float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    windows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(ids)]
    with tempfile.TemporaryDirectory(dir=place) as work:
        arguments = TrainingArguments(
            output_dir=work,
            per_device_train_batch_size=options.micro,
            gradient_accumulation_steps=BATCH // options.micro,
            max_steps=options.steps + 1,
            bf16=options.bf16,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model = load_model(place / "child", torch.float32)
        Trainer(model=model, args=arguments, train_dataset=windows, callbacks=[Clock()]).train()
    return times


@torch.no_grad()
def _teacher(parent: Checkpoint, ids: Any, options: argparse.Namespace) -> list[float]:
    model = load_model(parent.folder, torch.bfloat16 if options.bf16 else torch.float32).eval()
    times: list[float] = []
    for step in range(0, len(ids), BATCH):
        for start in range(step, step + BATCH, options.micro):
            model(input_ids=torch.from_numpy(ids[start : start + options.micro]), use_cache=False)
        times.append(time.perf_counter())
    return times


if __name__ == "__main__":
    main()
