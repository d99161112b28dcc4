"""The analysis engine against the naive way (naive_analysis.py), and on a model larger than the memory it's given.

ratio: SmolLM2-135M, 4 windows of 512 tokens, in one process and in turn. Matrix: the block dependency matrix alone.
Both: with it the KL and loss of dropping each attention alone. With L blocks, and h the time of a variant's LM head and
scores in times of a block on the same tokens (measured), counting block evaluations gives

    matrix, naive    L + L^2                       every variant goes through every block, as the parent does
    matrix, ours     L + L (L - 1) / 2             a variant goes through the blocks behind its change
    both, naive      2 (L + L^2) + (L + 1) h
    both, ours       L + L (L - 1) + L + (L + 1) h       the FFN left of a block counted as a block

    ideal ratio      matrix: 1 / 2                 both: (L + h) / (2 L + h)
    share of ideal   ideal ratio / measured ratio

The naive way repairs nothing, so neither do these. What it takes to measure every dropped attention repaired as well
stands beside them (repaired_scores): L more variants through the blocks after their change and the head, each with a
kernel regression of its own.

large: a random Llama of 12 GB in bfloat16 through the command line with --memory 4GiB, on few tokens; a process of its
own. Its memory is the peak of everything resident (VmHWM). Its reading is all that it read from files, less the hidden
states (half of what its plan says is written and read back) and less what the same command reads beside the weights,
measured on a tiny model: Python's modules alone are a hundredth of 12 GB.
Seconds are those of the whole process, against the estimate that --dry-run gives beforehand.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from analysis_large import large
from analysis_ratio import ratio
from common import finish

RATIO_GOALS = {"ratio_matrix": 0.58, "ratio_both": 0.68, "reads_per_weight": 1.0}
AGREEMENT_GOALS = {"matrix_difference": 1e-4, "kl_difference": 1e-4}  # held to on tiny models too
LARGE_GOALS = {"peak_rss_gib": 4.5, "weights_read_ratio": 1.01, "estimate_error": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["ratio", "large", "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    figures: dict[str, float] = {}
    goals: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        if options.part in ("ratio", "all"):
            figures |= ratio(Path(place), rounds, options.quick)
            goals |= AGREEMENT_GOALS | ({} if options.quick else RATIO_GOALS)
        if options.part in ("large", "all"):
            figures |= large(Path(place), options.quick)
            goals |= {} if options.quick else LARGE_GOALS
    met = all(figures[name] <= bound for name, bound in goals.items())
    order = {"order": "naive, ours, in turn", "rounds": str(rounds), "threads": str(torch.get_num_threads())}
    finish("analysis", figures, goals, met, {"part": options.part, **order})


if __name__ == "__main__":
    main()
