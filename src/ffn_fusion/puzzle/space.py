"""The space: every cheaper sub-block that a library has, block by block.

An entry changes the attention or the FFN of one block (they are trained decoupled, each beside the parent's other
sub-block), or several sub-blocks at once, of one block or of a run: then they are solved, trained and scored as the one
choice that they are, so that what they do to each other is in its score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from ffn_fusion.analysis.candidates import blocks_side_by_side, candidate_runs
from ffn_fusion.analysis.channels import largest_first
from ffn_fusion.analysis.choices import run_blocks
from ffn_fusion.analysis.widths import narrower
from ffn_fusion.blockwise.edits import FusedRun
from ffn_fusion.blueprint import (
    Block,
    Blueprint,
    Kind,
    LinearSubBlock,
    NarrowedFfn,
    NoSubBlock,
    Operation,
    Parent,
    PooledAttention,
)
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import ModelSpec, family_of
from ffn_fusion.puzzle.settings import SpaceSettings
from ffn_fusion.puzzle.words import ALL, LINEAR, NONE, WHOLE, kv_heads, width_share

Changed = Literal["attention", "ffn", "block"]
"""Which sub-blocks an entry changes: the attention or the FFN of one block, or both of each of its blocks."""


@dataclass(frozen=True)
class Entry:
    """One choice: ``blocks`` in place of parent blocks ``first..last``, which stay as they are but for ``part``."""

    first: int
    last: int
    part: Changed
    choice: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """The entry in few words: ``ffn 5: 50%``, ``blocks 5-7: fused``."""
        where = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{'blocks' if self.part == 'block' else self.part} {where}: {self.choice}"

    @property
    def kept_blocks(self) -> tuple[Block, ...]:
        """The blocks that compute something."""
        return tuple(block for block in self.blocks if not block.empty)

    @property
    def changes(self) -> tuple[tuple[int, Literal["attention", "ffn"]], ...]:
        """The sub-blocks that may be solved and trained: number among ``kept_blocks``, and which of the two."""
        parts: tuple[Literal["attention", "ffn"], ...] = ("attention", "ffn")
        return tuple(
            (k, part)
            for k, block in enumerate(self.kept_blocks)
            for part in parts
            if self.part in ("block", part) and block.part(part).present
        )

    def blueprint(self, parent: Parent) -> Blueprint:
        """Return the child that has this choice and is its parent elsewhere."""
        whole = Blueprint.identity(parent).blocks
        return Blueprint(parent=parent, blocks=(*whole[: self.first], *self.blocks, *whole[self.last + 1 :]))

    def place(self, parent: Parent) -> int:
        """Return the number of the first of ``kept_blocks`` in that child."""
        return sum(not block.empty for block in Blueprint.identity(parent).blocks[: self.first])


@dataclass(frozen=True)
class Space:
    """Entries in the order of their last blocks, and choices that were asked for and can't be had, with the reason."""

    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]


def keep_largest(entry: Entry, contribution: npt.NDArray[np.float64]) -> Entry:
    """Return the entry with the channels of the largest contribution [F] (``analysis.channels``) in narrowed FFNs."""

    def kept(block: Block) -> Block:
        if not isinstance(block.ffn, NarrowedFfn):
            return block
        channels = tuple(sorted(largest_first(contribution)[: len(block.ffn.channels)].tolist()))
        return block.model_copy(update={"ffn": NarrowedFfn(source=block.ffn.source, channels=channels)})

    return replace(entry, blocks=tuple(map(kept, entry.blocks)))


def make_space(spec: ModelSpec, settings: SpaceSettings) -> Space:
    """Return every entry that the settings ask for. Narrowed FFNs have their first channels: see ``keep_largest``.

    Raises:
        BlueprintError: a block outside the model.
    """
    count = len(spec.blocks)
    named = {
        *settings.only,
        *(i for run in settings.runs for i in run),
        *(i for r in settings.ranges for i in r.blocks),
    }
    if outside := sorted(i for i in named if i >= count):
        raise BlueprintError(f"block {outside[0]} is outside the model, which has {count}", "blocks count from 0")
    maker = _Maker(spec, settings)
    only = set(settings.only or range(count))
    entries = [entry for entry in maker.entries() if set(range(entry.first, entry.last + 1)) <= only]
    entries.sort(key=lambda entry: (entry.last, entry.first))
    return Space(tuple(entries), maker.left_out)


class _Maker:
    def __init__(self, spec: ModelSpec, settings: SpaceSettings) -> None:
        self.spec, self.settings = spec, settings
        self.first_channels = cache(lambda width: tuple(range(width)))
        self.whole = Blueprint.identity(spec.parent(""))
        self.left_out: dict[str, str] = {}

    def entries(self) -> Iterator[Entry]:
        inside = {i: each for each in self.settings.ranges for i in each.blocks}
        for i, block in enumerate(self.whole.blocks):
            space = inside.get(i, self.settings)
            for word, attention in self._all(i, space.attention, self._attention):
                yield Entry(i, i, "attention", word, (block.model_copy(update={"attention": attention}),))
            for word, ffn in self._all(i, space.ffn, self._ffn):
                yield Entry(i, i, "ffn", word, (block.model_copy(update={"ffn": ffn}),))
            yield from self._pairs(i, block, space.together)
        yield from self._runs()
        yield from self._side_by_side()

    def _all(self, i: int, words: Iterable[str], make: object) -> Iterator[tuple[str, Kind]]:
        seen: set[Kind] = set()
        for word in words:
            found = make(i, word)  # type: ignore[operator]
            if found and found[1] not in seen:
                seen.add(found[1])
                yield found

    def _pairs(self, i: int, block: Block, words: Iterable[str]) -> Iterator[Entry]:
        for word in words:
            attention, ffn = word.split("+")
            if not (block.attention.present and block.ffn.present):
                continue
            first = (ALL, block.attention) if attention == ALL else self._attention(i, attention)
            second = (WHOLE, block.ffn) if ffn == WHOLE else self._ffn(i, ffn)
            if first and second:
                made = Block(parent_blocks=block.parent_blocks, attention=first[1], ffn=second[1])
                yield Entry(i, i, "block", f"{first[0]}+{second[0]}", (made,))

    def _attention(self, i: int, word: str) -> tuple[str, Kind] | None:
        had = self.spec.blocks[i].attention
        if had is None:
            return None
        if word == NONE:
            return (NONE, NoSubBlock()) if self._can("drop attention", "attention none") else None
        if had.kind == "linear":
            return None
        if word == LINEAR:
            return (LINEAR, LinearSubBlock(source=i)) if self._can("make linear", "attention linear") else None
        kept = kv_heads(word, had.kv_heads)
        if kept is None or not self._can("pool KV heads", "fewer KV heads"):
            return None
        return f"{kept} KV head{'s' * (kept > 1)}", PooledAttention(source=i, kv_heads=kept)

    def _ffn(self, i: int, word: str) -> tuple[str, Kind] | None:
        had = self.spec.blocks[i].ffn
        if had is None:
            return None
        if word == NONE:
            return (NONE, NoSubBlock()) if self._can("drop FFN", "FFN none") else None
        if had.kind == "linear":
            return None
        if word == LINEAR:
            return (LINEAR, LinearSubBlock(source=i)) if self._can("make linear", "FFN linear") else None
        width = narrower(had.width, width_share(word))
        if width >= had.width or not self._can("narrow", "narrower FFNs"):
            return None
        return word, NarrowedFfn(source=i, channels=self.first_channels(width))

    def _runs(self) -> Iterator[Entry]:
        if not (self.settings.runs or self.settings.max_run > 1) or not self._can("fuse", "fused runs"):
            return
        asked = self.settings.runs
        every = candidate_runs(self.spec, range(len(self.spec.blocks)), self.settings.max_run)
        runs = [_run(first, last) for first, last in asked] if asked else every
        for run in runs:
            blocks = tuple(run_blocks(self.whole, run))
            yield Entry(
                run.first, run.last, "block", "fused with attention" if run.keeps_attention else "fused", blocks
            )

    def _side_by_side(self) -> Iterator[Entry]:
        if self.settings.max_side_by_side > 1 and self._can("side by side", "blocks side by side"):
            for first, last in blocks_side_by_side(self.spec, self.settings.max_side_by_side):
                block = self.whole.side_by_side(first, last).blocks[first]
                yield Entry(first, last, "block", "side by side", (block,))

    def _can(self, operation: Operation, what: str) -> bool:
        """Whether the family takes it; if not, the reason is noted."""
        reason = family_of(self.spec).can(operation)
        if reason:
            self.left_out[what] = reason
        return reason is None


def _run(first: int, last: int) -> FusedRun:
    """A run that leaves its last FFN alone, as in the paper, if it is longer than two."""
    return FusedRun(first, last, last - 1 if last > first + 1 else last)
