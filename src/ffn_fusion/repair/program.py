"""The order of a walk: teacher and child alternate, sub-block by sub-block, so that the teacher's state is always the
goal of the child's next place. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.repair.places import Place

Who = Literal["teacher", "child"]
What = Literal["attention", "ffn", "block", "input"]


@dataclass(frozen=True)
class Step:
    """One model's state goes through a block, or half of one; at a place, its projection is solved first.

    ``input``: nothing moves; the input of the child's FFN is mapped to that of parent block ``source``'s.
    """

    who: Who
    block: int
    what: What
    place: Place | None = None
    source: int | None = None


@dataclass(frozen=True)
class Program:
    """The steps in order. The child begins with the teacher's state before step ``fork``, at its block ``first``."""

    steps: tuple[Step, ...]
    fork: int
    first: int

    def blocks(self, who: Who) -> list[int]:
        """Return the blocks that a model needs, in order."""
        return list(dict.fromkeys(step.block for step in self.steps if step.who == who))


def make_program(
    blueprint: Blueprint,
    places: Sequence[Place],
    teacher: Sequence[int],
    *,
    side_by_side: bool = False,
    mapped: Mapping[int, Collection[int]] = MappingProxyType({}),
) -> Program:
    """From the first block with a place to the last.

    Args:
        teacher: for every block of the teacher, the parent's block that it ends with, in order.
        side_by_side: attention and FFN of a block read the same state: a block is one step, and no place an attention.
        mapped: child block -> the parent blocks whose FFN's input the input of its own is mapped to.
    """
    at: dict[int, list[Place]] = {}
    for place in places:
        at.setdefault(place.block, []).append(place)
    kept = blueprint.kept_blocks
    first, last = min(at), max(at)
    begins = kept[first].parent_blocks[0]
    ahead = list(range(len(teacher)))
    steps = [Step("teacher", t, "block") for t in _taken(ahead, teacher, begins - 1)]
    fork = len(steps)
    for k in range(first, last + 1):
        sources = mapped.get(k, ())
        by_part = {place.part: place for place in at.get(k, [])}
        if attention := by_part.get("attention"):
            steps += [Step("teacher", t, "block") for t in _taken(ahead, teacher, attention.parent_last - 1)]
            t = ahead[0]
            steps += [Step("teacher", t, "attention"), Step("child", k, "attention", attention)]
            steps += [Step("child", k, "input", source=teacher[t])] * (teacher[t] in sources)
            steps += [Step("teacher", t, "ffn")]
            ahead.pop(0)
        elif sources and kept[k].attention.present:
            steps.append(Step("child", k, "attention"))
        for t in _taken(ahead, teacher, kept[k].parent_blocks[1]):
            looked = [Step("child", k, "input", source=teacher[t])] * (teacher[t] in sources)
            halves = [Step("teacher", t, "attention"), *looked, Step("teacher", t, "ffn")]
            steps += halves if looked else [Step("teacher", t, "block")]
        together = side_by_side and kept[k].attention.present and kept[k].ffn.present
        if kept[k].attention.present and not (attention or together or sources):
            steps.append(Step("child", k, "attention"))
        if kept[k].ffn.present:
            steps.append(Step("child", k, "block" if together else "ffn", by_part.get("ffn")))
    return Program(tuple(steps), fork, first)


def _taken(ahead: list[int], teacher: Sequence[int], end: int) -> list[int]:
    """Take the teacher's next blocks up to parent block ``end``."""
    taken = []
    while ahead and teacher[ahead[0]] <= end:
        taken.append(ahead.pop(0))
    return taken
