"""What an analysis asks. Imports nothing heavy: recipes and the command line name the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["block", "attention", "ffn"]
PARTS: tuple[Part, ...] = ("block", "attention", "ffn")


@dataclass(frozen=True)
class Questions:
    """What an analysis asks.

    Args:
        parts: sub-blocks that are removed one at a time, for the dependency matrices.
        scores: of those, which are compared at the LM head (replace-1 damages); planning needs attention.
        max_stretch: longest stretch of attention-free blocks that is measured as one; 1 measures none.
        candidate_share: stretches are measured among this share of the attentions, the least important; with 1 nothing
            has to be known beforehand, and one pass over the weights answers everything.
        leave_last: measure stretches with their last FFN left out of the fusion, as the paper fuses; else both ways.
        reverse: runs (first, last) whose order is tested.
        repaired: measure stretches, and attentions removed alone, as they'll be once they're repaired, too.
    """

    parts: tuple[Part, ...] = PARTS
    scores: tuple[Part, ...] = ("attention",)
    max_stretch: int = 5
    candidate_share: float = 0.5
    leave_last: bool = True
    reverse: tuple[tuple[int, int], ...] = ()
    repaired: bool = True
