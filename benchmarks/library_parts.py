"""What of a library is measured, part by part. Every part returns figures by "row | column"."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from analysis_large import LARGE, random_model, watched
from quality_bench import Bench, Figures
from random_llama import TINY, forget
from torch import Tensor

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.puzzle import make
from ffn_fusion.puzzle.estimate import estimate_library
from ffn_fusion.puzzle.lesson import Lesson, relative_errors
from ffn_fusion.puzzle.make import Making, make_library
from ffn_fusion.puzzle.scores import Scoring, score_entries
from ffn_fusion.puzzle.settings import LibrarySettings
from ffn_fusion.puzzle.store import Library, StoredEntry
from ffn_fusion.puzzle.train import train_entry
from ffn_fusion.repair.fit import SLOT

TOKENS, SCORED = 16_384, 2_048
EPOCHS, RATE = 6, 1e-3
BLOCKS = "6,14,22"
CHOICES: dict[str, Any] = {
    "attention": ["1", "linear"],
    "ffn": ["50%", "25%", "10%", "linear"],
    "together": ["none+100%"],
    "max_run": 1,
}
_WORST_PLAN, _LEAST_SHARE = 1.25, 0.8


def goals_of(figures: Figures) -> Figures:
    """Upper bounds: the plan's seconds hold within 25 %, and training keeps 0.8 of what plain torch makes."""
    goals = {"large | peak memory, GiB": 6.0} if "large | seconds" in figures else {}
    if (row := "plan | taken / planned") in figures:
        goals[row] = _WORST_PLAN
        goals["plan | planned / taken"] = _WORST_PLAN
    if (row := "throughput | library / plain torch, seconds a step") in figures:
        goals[row] = 1 / _LEAST_SHARE
    return goals


@dataclass(frozen=True)
class LibraryBench(Bench):
    """A bench that makes libraries."""

    @property
    def blocks(self) -> str:
        """Blocks that are looked at."""
        return BLOCKS if self.scale == 1 else "1"

    @property
    def training(self) -> dict[str, Any]:
        """How sub-blocks are trained where they are compared."""
        return {"epochs": EPOCHS if self.scale == 1 else 1, "learning_rate": RATE}

    def making(self, name: str, **settings: Any) -> Making:
        """A library of the chosen blocks."""
        space = {**CHOICES, "only": self.blocks}
        chosen = LibrarySettings.model_validate({"space": space, **settings})
        return Making(self.parent, self.text(TOKENS), self.place / name, chosen)


def methods(bench: LibraryBench) -> Figures:
    """Errors and scores of each kind, medians over the blocks."""
    training = bench.training
    makers = {
        "as made": bench.making("plain", solve=False),
        "solved": bench.making("solved"),
        "trained": bench.making("trained", solve=False, training=training),
        "solved and trained": bench.making("both", training=training),
    }
    found = Figures()
    scored = [text.part(0, max(1, len(text.ids_NT) // 8)) for text in bench.held_out.values()]
    for name, making in makers.items():
        library = make_library(making)
        entries = {stored.entry: stored for stored in library.entries}
        rows = score_entries(Scoring(bench.parent, library, list(entries.items()), scored))["kl"]
        kl = {(row.first_block, row.part, row.choice): row.score for row in rows}
        for choice, group in _by_choice(library):
            found[f"{choice} | {name}, error"] = median(stored.error for stored in group)
            found[f"{choice} | {name}, KL"] = median(kl[s.first, s.part, s.choice] for s in group)
            found[f"{choice} | {name}, seconds"] = median(stored.seconds for stored in group)
            print(f"{choice} | {name}: {found[f'{choice} | {name}, error']:.4f}", flush=True)
    return found


def _by_choice(library: Library) -> Iterator[tuple[str, list[StoredEntry]]]:
    names = dict.fromkeys((stored.part, stored.choice) for stored in library.entries)
    for part, choice in names:
        yield f"{part} {choice}", [s for s in library.entries if (s.part, s.choice) == (part, choice)]


def throughput(bench: LibraryBench) -> Figures:
    """Seconds of a step: an epoch of a library's training against the same passes and optimizer in a plain loop."""
    settings = {"training": {"epochs": 1, "patience": 100}, "solve": False}
    ratios: list[float] = []

    def compare(making: Making, lesson: Lesson, scratch: Path) -> tuple[StoredEntry, dict[str, Tensor]]:
        if lesson.parameters and lesson.entry.part == "ffn":
            before = lesson.snapshot()
            error = lesson.error(lesson.windows.deciding[:1])
            for _ in range(3):
                began = time.perf_counter()
                steps = train_entry(lesson, making.settings.training, 0, making.dtype, error)
                taken = time.perf_counter() - began
                lesson.restore(before)
                began = time.perf_counter()
                _plain(lesson, steps, making.settings.training.batch)
                ratios.append(taken / (time.perf_counter() - began))
                lesson.restore(before)
        entry = lesson.entry
        about = {name: getattr(entry, name) for name in ("first", "last", "part", "choice", "blocks")}
        return StoredEntry(**about, removed=1.0, initial=1.0), {}

    making = bench.making("throughput", **settings)
    kept, make.make_entry = make.make_entry, compare
    try:
        make_library(making)
    finally:
        make.make_entry = kept
    return {"library / plain torch, seconds a step": median(ratios)}


def _plain(lesson: Lesson, steps: int, batch: int) -> None:
    """Forward, backward and AdamW on the same windows, with the errors that decide as often; nothing else."""
    parameters = [parameter.requires_grad_() for parameter in lesson.parameters.values()]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    count = lesson.windows.fitted[-1].stop
    views = [
        torch.cat([view.read(SLOT, slice(n, n + 1)) for n in range(count)]) for view in (lesson.start, lesson.goal)
    ]
    for step in range(steps):
        rows = [(step * batch + k) % count for k in range(min(batch, count))]
        start, goal = (view[rows] for view in views)
        optimizer.zero_grad()
        relative_errors(lesson.forward(start), goal).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def plan(bench: LibraryBench) -> Figures:
    """Seconds that making took, over what the plan said."""
    making = bench.making("plan", training={"epochs": 2})
    planned = estimate_library(making).seconds
    assert planned
    began = time.perf_counter()
    make_library(bench.making("plan", training={"epochs": 2}))
    taken = time.perf_counter() - began
    return {"planned seconds": planned, "taken / planned": taken / planned, "planned / taken": planned / taken}


def large(bench: LibraryBench) -> Figures:
    """A random model of 12 GB within 6 GiB, in a process of its own; its peak memory and seconds."""
    quick = bench.scale < 1
    folder, out = random_model(bench.place / "large", TINY if quick else LARGE), bench.place / "large-library"
    text = bench.place / "text.txt"
    text.write_text(" ".join(f"word{i * 7919 % 1000}" for i in range(400)), encoding="utf-8")
    words: list[Any] = [Path(sys.executable).with_name("ffn-fusion"), "library", folder, "-o", out, "--json"]
    words += ["--memory", "6GiB", "--attention", "linear", "--ffn", "50%", "--together", "", "--max-run", "1"]
    words += ["--tokens", 8 * 32, "--score-tokens", 32, "--context", 32, "--text", text]
    forget(folder)
    done = watched(words)
    return {
        "checkpoint_gb": open_folder(folder).nbytes / 1e9,
        "entries": float(len(json.loads(done.output)["entries"])),
        "seconds": done.seconds,
        "peak memory, GiB": done.peak_rss / 2**30,
    }


PARTS: dict[str, Callable[[LibraryBench], Figures]] = {
    "methods": methods,
    "throughput": throughput,
    "plan": plan,
    "large": large,
}
