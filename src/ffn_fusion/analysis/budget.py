"""What a plan aims for, and the defaults. Imports nothing heavy: the command line names the defaults in its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ffn_fusion.blueprint import FusionNorm
    from ffn_fusion.portability.rule import Engine

DEFAULT_DROP = 0.2
DEFAULT_MAX_DAMAGE = 0.5
FUSE_TOLERANCE = 1.0
"""``fuse="auto"``: fusing may cost as much again as dropping the attentions does."""


@dataclass(frozen=True)
class Budget:
    """What to aim for: ``drop_attention`` and ``fuse``, or instead of them ``speedup``, or ``steps``.

    Args:
        drop_attention: how many attentions go: a number (1 or more) or a fraction of the parent's (below 1).
        speedup: instead of that, a speed-up by the simple cost count (``analysis.cost_count``).
        steps: instead of that, how many sequential steps the child has at most (``analysis.cost_count.steps``).
        fuse: FFN steps to fuse away: a number, or "auto" for as many as cost no more than dropping did.
        max_damage: no run is fused whose measured KL to the parent (nats a token) is above this.
        max_width: widest fused FFN; a wider run is split.
        norm: fusion convention.
        repaired: judge changes by their repaired damage, where it was measured; False for a child that won't be.
        engines: all of these must load the child as it's built (``analysis.loadable``).
    """

    drop_attention: float = DEFAULT_DROP
    speedup: float | None = None
    steps: int | None = None
    fuse: int | Literal["auto"] = "auto"
    max_damage: float = DEFAULT_MAX_DAMAGE
    max_width: int | None = None
    norm: FusionNorm = "own"
    repaired: bool = True
    engines: tuple[Engine, ...] = ()
