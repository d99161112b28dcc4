"""Distillation on SmolLM2-135M: what 262,144 tokens bring back, on text unlike the training text and like it.

The child: attentions 5-10 and 17-20 dropped, all FFNs of each run but the last fused, repaired on 24,576 tokens.
main: that child, distilled. curve: over tokens. objective, trained, rates, contexts: one setting changed at a time.
controls: the same training of a child that was never repaired, and of one that was never fused.

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
    parser.add_argument("--few", type=int, default=16_384, help="tokens of a training in the parts that compare")
    parser.add_argument("--most", type=int, default=98_304, help="tokens of the longest training in the curve")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()

    def make(place: Path) -> DistillBench:
        if options.quick:
            return DistillBench.tiny(place, options.device)
        few, most, bf16 = options.few, options.most, not options.float32
        return DistillBench.real(place, few=few, most=most, bf16=bf16, device=options.device)

    finish_parts("distill_quality", options, PARTS, make, goals_of)


if __name__ == "__main__":
    main()
