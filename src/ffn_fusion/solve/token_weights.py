"""How much every token counts in a repair, so that a few of huge norm don't own it.

    none:            w = 1
    inverse-energy:  w = (m / |y|)^2            every token's error relative to its own state
    capped:          w = min(1, (c m / |y|)^2)  ordinary tokens as they are, none above c times the usual norm

y the parent's state of a token, m the median of |y|. A sum of squares weighs a token by |y|^2. In the early layers of
most models a few tokens (the first, some delimiters) have norms 100 to 1000 times the others': 10^4 to 10^6 votes each.
The norm in front of the next layer takes a state's length away anyway.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Weighting = Literal["none", "inverse-energy", "capped"]

_FLOOR = 0.1  # of the median: a token of norm nearly 0 weighs no more than 1 / _FLOOR^2 ordinary ones


def token_weights(states_ND: Tensor, kind: Weighting, *, cap: float = 3.0, median: float | None = None) -> Tensor:
    """w [N] in float32, 1 for a token of median norm; 0 for one that isn't finite.

    Args:
        states_ND: the parent's states, or whatever else the repair is to reach.
        cap: c.
        median: m; None: of these tokens. Give all chunks the same, or a token's weight depends on its neighbours.

    Raises:
        ValueError: another kind.
    """
    if kind not in get_args(Weighting):
        raise ValueError(f"weights are one of {', '.join(get_args(Weighting))}, not {kind!r}")
    norm = state_norms(states_ND)
    finite = norm.isfinite()
    if kind == "none":
        return finite.float()
    m = median_norm(states_ND) if median is None else median
    if m <= 0:  # states that are all zero, or none at all: nothing to go by
        return finite.float()
    share = (m / norm.clamp_min(_FLOOR * m)).nan_to_num(nan=0.0)
    weights = share.square() if kind == "inverse-energy" else (cap * share).square().clamp_max(1.0)
    return torch.where(finite, weights, 0.0).float()


def median_norm(states_ND: Tensor) -> float:
    """m, of the finite tokens: [N, D] -> norm. 0 of no tokens."""
    norm = state_norms(states_ND)
    norm = norm[norm.isfinite()]
    return float(norm.median()) if len(norm) else 0.0


def state_norms(states_ND: Tensor) -> Tensor:
    """[N, D] -> [N] in float64, where no finite number's square overflows."""
    norms: Tensor = torch.linalg.vector_norm(states_ND.detach().double(), dim=1)
    return norms
