"""Closed-form repair on SmolLM2-135M: what it brings back, on text that was never calibrated on.

runs: attentions dropped in one run (or three), all FFNs of it but the last fused. plan: 10 of 30 attentions dropped in
two runs, on every kind of text. edits: what repair does for each kind of edit. curve: over tokens of calibration text.
ablations: one setting changed at a time.

Calibration: equal parts of speeches (1945 to 2016), encyclopedia, web pages, news and conversations. Held out: the
first 2,048 tokens of recent speeches, and as many of other passages of the other kinds, in windows of 512. Sequential
is the child with the same attentions dropped and every FFN in its own block: what fusing began with. Seconds are of the
repair alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import finish
from quality_bench import Bench, Figures
from repair_parts import PARTS, goals_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], nargs="+", default=["all"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    parts = list(PARTS) if "all" in options.part else options.part
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        bench = Bench.tiny(Path(place)) if options.quick else Bench.real(Path(place))
        for part in parts:
            for name, value in PARTS[part](bench).items():
                figures[f"{part} | {name}"] = value
                print(f"{part} | {name}: {value:.4g}", flush=True)
    goals = {} if options.quick else goals_of(figures)
    met = all(figures[name] <= bound for name, bound in goals.items())
    finish("repair", figures, goals, met, {"parts": ", ".join(parts), "threads": str(bench.threads)})


if __name__ == "__main__":
    main()
