"""Distillation on SmolLM2-135M: what 262,144 tokens bring back, on text unlike the training text and like it.

The child: attentions 5-10 and 17-20 dropped, all FFNs of each run but the last fused, repaired on 24,576 tokens.
main: that child, distilled. curve: over tokens. objective, trained, rates: one setting changed at a time. controls: the
same training of a child that was never repaired, and of one that was never fused.

Trained on, and repaired on: equal parts of speeches before 1945, encyclopedia, web pages, news and conversations.
Held out: the first 2,048 tokens of speeches since 2019 and as many of Python (unlike the training text), and of other
passages of the other kinds (like it), in windows of 512. Seconds are of the training alone.
"""

from __future__ import annotations

from pathlib import Path

from common import finish_parts, parts_parser
from distill_bench import DistillBench
from distill_parts import PARTS, goals_of


def main() -> None:
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument("--float32", action="store_true", help="for a machine that is slow at bfloat16")
    options = parser.parse_args()

    def make(place: Path) -> DistillBench:
        return DistillBench.tiny(place) if options.quick else DistillBench.real(place, bf16=not options.float32)

    finish_parts("distill_quality", options, PARTS, make, goals_of)


if __name__ == "__main__":
    main()
