"""Do fusing, rounding and a draft multiply? Decode speed in llama.cpp, each alone and all together: SmolLM2-135M.

alone: what each does to the parent in 16 bits. together: every combination over the parent in 16 bits, against the
product of what its parts do alone. drafts: what each draft brings a step of the model, what such a step costs, and
from which acceptance and below which cost of the draft it would pay.

pruned is the parent without attentions 5-10 and 17-20, fused the same with all FFNs of each run but the last joined.
Drafts propose up to 4 tokens: the parent's own child with 11 blocks fewer (8-18, and attention 19), in 4 bits;
the fused child in 4 bits; what followed the same three tokens before (lookup). Children are repaired on 10,240 tokens.

Every way has a llama-server of its own, all run at once; in each round all are asked for 64 tokens behind the same 64
of held-out text, one at a time, greedily. A ratio is the median over rounds of the ratio within each. A text that a
draft changed must have parted from the other at a tie. llama.cpp is looked for where tools/engines/llama_cpp.sh puts
it ($FFN_FUSION_LLAMA_CPP, .engines).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import median

from common import finish_parts, parts_parser
from lab.generated import Generated
from multipliers_bench import DRAFT, LOOKUP, NO_DRAFT, PROPOSERS, SIXTEEN, Models, Served, Way, measure, real, tiny

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(os.environ.get("FFN_FUSION_LLAMA_CPP") or ROOT / ".engines" / "llama.cpp") / "build" / "bin"
BASE: Way = ("parent", SIXTEEN, NO_DRAFT)

Figures = dict[str, float]


@dataclass(frozen=True)
class Bench:
    models: Models
    threads: int

    @cached_property
    def served(self) -> Served:
        return measure(self.models, PROGRAMS, self.threads)

    @property
    def ways(self) -> list[Way]:
        return [way for way in self.served.rounds if way[0] != DRAFT]

    def ratios(self, way: Way, base: Way) -> list[float]:
        """How many times as fast, round by round."""
        rounds = self.served.rounds
        return [speed(mine) / speed(its) for mine, its in zip(rounds[way], rounds[base], strict=True)]

    def alone(self) -> Figures:
        """One thing changed of the parent in 16 bits; and what fusing does by itself."""
        found: Figures = {}
        for way in self.ways:
            changed = [k for k in range(3) if way[k] != BASE[k]]
            if len(changed) == 1:
                found |= spread(f"{way[changed[0]]} over {BASE[changed[0]]}", self.ratios(way, BASE))
        pruned, fused = (("pruned", *BASE[1:]), ("fused", *BASE[1:]))
        return found | spread("fused over pruned", self.ratios(fused, pruned))

    def together(self) -> Figures:
        """Of every way its speed; of those with two or three things changed, the product of what each does alone."""
        found: Figures = {}
        for way in self.ways:
            row, measured = ", ".join(way), median(self.ratios(way, BASE))
            found[f"{row} | tokens a second"] = median(map(speed, self.served.rounds[way]))
            found[f"{row} | measured"] = measured
            if sum(mine != its for mine, its in zip(way, BASE, strict=True)) > 1:
                product = prod(median(self.ratios(one, BASE)) for one in parts_of(way))
                found |= {f"{row} | product": product, f"{row} | measured over product": measured / product}
        return found

    def drafts(self) -> Figures:
        found: Figures = {}
        for way in (way for way in self.ways if way[2] != NO_DRAFT):
            plain, row = (*way[:2], NO_DRAFT), ", ".join(way)
            rounds, parted = self.served.rounds[way], self.served.parted.get(way, [])
            figures = {"over plain": median(self.ratios(way, plain)), **self.paying(way, plain)}
            figures["same texts"] = 1 - len(parted) / len(rounds)
            if parted:
                figures["widest tie, nats"] = max(parted)
            found |= {f"{row} | {column}": value for column, value in figures.items()}
        return found

    def paying(self, way: Way, plain: Way) -> Figures:
        """What a draft brings and costs, in steps of the model without one; and what it would have to."""
        rounds = self.served.rounds[way]
        steps = sum(one.steps for one in rounds)
        drafted, accepted = (sum(getattr(one, what) for one in rounds) for what in ("drafted", "accepted"))
        tokens, each = 1 + accepted / steps, drafted / steps
        cost = tokens / median(self.ratios(way, plain))
        figures = {"drafted a step": each, "accepted": accepted / drafted if drafted else 0.0, "tokens a step": tokens}
        figures["a step's cost"] = cost
        needed = acceptance_for(cost, self.models.drafted)
        if needed is not None and way[2] != LOOKUP:
            figures["pays from an acceptance of"] = needed
        own = self.draft_of(way)
        if own is not None:
            share = 1 / median(self.ratios(own, plain))
            figures["a draft token's cost"] = share
            figures["pays below a draft's cost of"] = affordable(tokens, cost, each, share)
        return figures

    def draft_of(self, way: Way) -> Way | None:
        """The draft, generating by itself."""
        model = PROPOSERS.get(way[2])
        return (model, self.models.formats[-1], NO_DRAFT) if model else None


def speed(text: Generated) -> float:
    """Tokens a second behind the first."""
    return text.decoded / text.decode_s


def parts_of(way: Way) -> list[Way]:
    """The same, one thing at a time."""
    return [(way[0], *BASE[1:]), (BASE[0], way[1], BASE[2]), (*BASE[:2], way[2])]


def spread(row: str, ratios: Sequence[float]) -> Figures:
    return {f"{row} | median": median(ratios), f"{row} | lowest": min(ratios), f"{row} | highest": max(ratios)}


def tokens_per_step(length: int, acceptance: float) -> float:
    """With ``length`` proposed and each accepted with this probability, up to the first that isn't."""
    return sum(acceptance**k for k in range(length + 1))


def acceptance_for(tokens: float, length: int) -> float | None:
    """The acceptance rate at which a step yields this number of tokens; None if even a rate of 1 yields fewer."""
    if tokens > length + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_step(length, middle) < tokens else (low, middle)
    return high


def affordable(tokens: float, cost: float, drafted: float, share: float) -> float:
    """What a draft's token may cost for a step to bring what it costs, everything else as it is: below 0, not even a
    draft for nothing pays, as the rest of a step alone costs more than it brings. The rest: the model checks what was
    proposed, and llama.cpp has the draft read all of that once more; so a cheaper draft may pay a little earlier.

    Args:
        tokens: what a step brings. cost: of a step with its draft. drafted: tokens a step. share: a draft token's cost.
    """
    rest = cost - drafted * share
    return (tokens - rest) / drafted if drafted else 0.0


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "alone": Bench.alone,
    "together": Bench.together,
    "drafts": Bench.drafts,
}


def main() -> None:
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument("--keep", type=Path, help="an existing folder: children and GGUF files are kept there")
    parser.add_argument("--threads", type=int, default=1, help="of each llama-server (1)")
    parser.add_argument("--rounds", type=int, default=10, help="at most 10: a prompt each (10)")
    options = parser.parse_args()
    if not (PROGRAMS / "llama-server").is_file():
        sys.exit(f"no llama.cpp in {PROGRAMS}: run tools/engines/llama_cpp.sh, or set FFN_FUSION_LLAMA_CPP")

    def make(place: Path) -> Bench:
        models = tiny(place) if options.quick else real(options.keep or place, options.rounds)
        return Bench(models, options.threads)

    finish_parts("multipliers", options, PARTS, make, lambda figures: {})


if __name__ == "__main__":
    main()
