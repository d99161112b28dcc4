"""Blocks side by side on SmolLM2-135M: which pairs, how many, and what else saves as many steps.

pairs: every pair of neighbouring blocks side by side, alone in the model: KL in two steps (one wide block), as in the
paper (every FFN after its own attention), and repaired. windows: 1 to 4 pairs at once, chosen by the block dependency M
as the paper does (least M_max, ties by M_sum) and by measured damage, as they are and repaired. levers: the same number
of steps saved by dropping blocks, by dropping attentions and fusing FFNs, and by blocks side by side. half: every pair
merged, a plain Llama of half the depth.

Calibration and held-out text are those of the repair benchmark; KL to the parent in nats a token, the mean over five
kinds of text. Unless a part says otherwise nothing is trained.
"""

from __future__ import annotations

from common import finish_parts, parts_parser
from parallel_parts import PARTS, PairsBench, goals_of


def main() -> None:
    options = parts_parser(__doc__, PARTS).parse_args()
    finish_parts("parallel", options, PARTS, PairsBench.tiny if options.quick else PairsBench.real, goals_of)


if __name__ == "__main__":
    main()
