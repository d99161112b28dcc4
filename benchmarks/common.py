"""What every benchmark prints: a table for people and, as its last line, one JSON object. And those made of parts."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from sources import stamp

from ffn_fusion.latency.machine import machine


def finish(
    name: str,
    figures: Mapping[str, float],
    goals: Mapping[str, float],
    met: bool,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Print the result and exit: 0 if every goal is met.

    Args:
        figures: what was measured. goals: upper bounds, by the names of figures.
        notes: what a figure was measured on.
    """
    width = max(map(len, figures))
    for key, value in figures.items():
        goal = f"   goal <= {goals[key]:g}" if key in goals else ""
        print(f"{key:{width}}  {value:12.4g}{goal}")
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    result: dict[str, Any] = {"benchmark": name, "machine": machine(), "command": command, **stamp(name)}
    result |= {"figures": dict(figures), "goals": dict(goals), "met": met}
    print(json.dumps({**result, **({"notes": dict(notes)} if notes else {})}))
    sys.exit(0 if met else 1)


BenchT = TypeVar("BenchT")
Part = Callable[[BenchT], Mapping[str, float]]


def parts_parser(about: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Options of a benchmark that is made of parts."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*parts, "all"], nargs="+", default=["all"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    return parser


def finish_parts(
    name: str,
    options: argparse.Namespace,
    parts: Mapping[str, Part[BenchT]],
    make: Callable[[Path], BenchT],
    goals_of: Callable[[dict[str, float]], dict[str, float]],
) -> None:
    """Measure the parts that were asked for, print each figure when it's there, and finish."""
    asked = list(parts) if "all" in options.part else options.part
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        bench = make(Path(place))
        for part in asked:
            for row, value in parts[part](bench).items():
                figures[f"{part} | {row}"] = value
                print(f"{part} | {row}: {value:.4g}", flush=True)
    goals = {} if options.quick else goals_of(figures)
    met = all(figures[row] <= bound for row, bound in goals.items())
    told = ("device", "few", "most", "float32")
    notes = {name: str(value) for name, value in vars(options).items() if name in told}
    if notes.get("device", "cpu") != "cpu":
        notes["device"] = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    finish(name, figures, goals, met, {"parts": ", ".join(asked), "threads": str(torch.get_num_threads()), **notes})
