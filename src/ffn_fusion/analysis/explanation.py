"""Why one block of the parent was kept, dropped or fused: the data. ``analysis.explain`` finds it. No torch.

Damages are KL to the parent in nats a token; blocks count from 0 and are the parent's unless it says child.
"""

from __future__ import annotations

from typing import Literal

from ffn_fusion.analysis.evidence import Geometry, Part
from ffn_fusion.settings import Frozen

SubBlock = Literal["attention", "ffn"]
Fate = str
"""What became of a parent's sub-block: the ``fate`` of its kind, ``dropped`` or ``none in the parent``."""
Instead = Literal["kept", "dropped", "unfused", "fused"]
ChosenBy = Literal["programme", "person", "unknown"]


class Decision(Frozen):
    """What became of a sub-block. ``words`` say it with its number; ``child_block`` is where it went, if anywhere."""

    part: SubBlock
    fate: Fate
    child_block: int | None
    words: str


class Alone(Frozen):
    """The damage when a sub-block or whole block alone is dropped; ``rank`` 1 of ``ranked`` does the least."""

    kl: float
    kl_error: float
    rank: int
    ranked: int


class Neighbour(Frozen):
    """A block near the one explained (or that one): what became of it, and what was measured about it."""

    block: int
    attention: Fate
    ffn: Fate
    alone: dict[Part, Alone]
    geometry: tuple[Geometry, ...]


class Choice(Frozen):
    """A measured change that touches the block: an attention dropped alone, a run, or blocks side by side.

    ``allowed``: not above the plan's ``max_damage``. ``merged``: runs whose blocks are side by side. ``per_step``:
    damage for each of the sequential ``steps`` saved.
    """

    first: int
    last: int
    dropped: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    merged: tuple[tuple[int, int], ...]
    steps: int
    damage: float
    damage_error: float
    per_step: float
    chosen: bool
    allowed: bool


class Link(Frozen):
    """A block (or sub-block) that depends on the one explained, or that it depends on: an entry of M."""

    block: int
    distance: float


class Dependency(Frozen):
    """The strongest entries of the block's column and row in one matrix M, the strongest first."""

    part: Part
    depends_on: tuple[Link, ...]
    needed_by: tuple[Link, ...]


class Counterfactual(Frozen):
    """The least summed damage of a child of the same size in which this sub-block had another fate.

    ``damage`` is None where no child of this size has it; ``more`` is the difference to the child's own summed damage,
    None where one of the two isn't there.
    """

    part: SubBlock
    instead: Instead
    damage: float | None
    more: float | None
    dropped: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    merged: tuple[tuple[int, int], ...]


class Explanation(Frozen):
    """Why a block's attention and FFN are what they are in a child.

    ``chosen_by``: the exact programme (the child has the least summed damage of its size), a person (the recipe names
    attentions and runs), or unknown (neither, as far as the evidence says). ``damage`` is the child's summed measured
    damage, None where its runs weren't measured as they are; ``least`` that of the best child of its size, None where
    there is none. ``size``: attentions dropped, FFN steps fused away. ``repaired``: damages are those of changes whose
    output projections were solved anew, where that was measured.
    """

    parent: str
    block: int
    blocks: int
    size: tuple[int, int]
    repaired: bool = False
    chosen_by: ChosenBy
    damage: float | None
    least: float | None
    decisions: tuple[Decision, ...]
    neighbours: tuple[Neighbour, ...]
    choices: tuple[Choice, ...]
    dependencies: tuple[Dependency, ...]
    counterfactuals: tuple[Counterfactual, ...]
