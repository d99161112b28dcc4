"""How far two correct computations of the same logits may differ, on any processor."""

from __future__ import annotations

from math import sqrt

import torch

PRODUCTS = 8
"""Matrix products in a row that a block's output goes through: q, k, v, scores, values, o, gate or up, down."""
CERTAINTY = 4
"""Standard deviations: rounding errors of independent operations add up like random ones."""
CONDITION = 4
"""By how much norms, softmax and the largest of many elements enlarge what one product got wrong."""


def rounding(dtype: torch.dtype, *, blocks: int, terms: int) -> float:
    """The largest relative difference that rounding explains between two orders of summation.

    A chain of n dependent operations with unit roundoff u errs by no more than lambda * sqrt(n) * u with a probability
    that lambda sets (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput.
    41(5), 2019, theorem 2.4). Which order a kernel sums in depends on the processor; this bound doesn't.

    Args:
        blocks: decoder blocks that the state goes through.
        terms: the longest inner product in them (hidden size or FFN width).
    """
    unit = torch.finfo(dtype).eps / 2
    return CERTAINTY * CONDITION * sqrt(blocks * PRODUCTS * terms) * unit
