"""Distillation on SmolLM2-135M: what half an hour on two cores brings back, on text unlike the training text.

The child: attentions 5-10 and 17-20 dropped, all FFNs of each run but the last fused, repaired on 24,576 tokens.
main: that child, distilled. curve: over tokens. objective, trained, rates: one setting changed at a time. controls: the
same training of a child that was never repaired, and of one that was never fused.

Trained on, and repaired on: equal parts of speeches before 1945, encyclopedia, web pages, news and conversations.
Held out: the first 2,048 tokens of speeches since 2019 and as many of Python (unlike the training text), and of other
passages of the other kinds (like it), in windows of 512. Seconds are of the training alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import finish
from distill_bench import DistillBench
from distill_parts import PARTS, goals_of
from quality_bench import Figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], nargs="+", default=["all"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--float32", action="store_true", help="for a machine that is slow at bfloat16")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    parts = list(PARTS) if "all" in options.part else options.part
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        place = Path(name)
        bench = DistillBench.tiny(place) if options.quick else DistillBench.real(place, bf16=not options.float32)
        for part in parts:
            for name, value in PARTS[part](bench).items():
                figures[f"{part} | {name}"] = value
                print(f"{part} | {name}: {value:.4g}", flush=True)
    goals = {} if options.quick else goals_of(figures)
    met = all(figures[name] <= bound for name, bound in goals.items())
    finish("distill_quality", figures, goals, met, {"parts": ", ".join(parts), "threads": str(bench.threads)})


if __name__ == "__main__":
    main()
