"""Closed-form repair on SmolLM2-135M: what it brings back, on text that was never calibrated on.

runs: attentions dropped in one run (or three), all FFNs of it but the last fused. plan: 10 of 30 attentions dropped in
two runs, on every kind of text. inputs: what FFNs of a run read mapped as well. edits: what repair does for each kind
of edit. curve: over tokens of calibration text.
ablations: one setting changed at a time.

Calibration: equal parts of speeches (1945 to 2016), encyclopedia, web pages, news and conversations. Held out: the
first 2,048 tokens of recent speeches, and as many of other passages of the other kinds, in windows of 512. Sequential
is the child with the same attentions dropped and every FFN in its own block: what fusing began with. Seconds are of the
repair alone.
"""

from __future__ import annotations

from common import finish_parts, parts_parser
from quality_bench import Bench
from repair_parts import PARTS, goals_of


def main() -> None:
    options = parts_parser(__doc__, PARTS).parse_args()
    finish_parts("repair", options, PARTS, Bench.tiny if options.quick else Bench.real, goals_of)


if __name__ == "__main__":
    main()
