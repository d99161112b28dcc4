"""The blueprint: what every block of the child is made of. Frozen data, JSON, versioned, no torch.

Everything that decides (a person, a rule, a search) ends in a :class:`Blueprint`; everything that builds begins
with one. A child block names the parent sub-blocks its attention and its FFN come from, and how::

    {"parent_blocks": [5, 9],
     "attention": {"kind": "none"},
     "ffn": {"kind": "fused", "sources": [5, 6, 7, 8, 9], "norm": "own"}}

``parent_blocks`` is the range of the parent that the child block stands for: the ranges of all child blocks cover
the parent exactly once and in order, so a child block ends where parent block ``parent_blocks[1]`` ends.
A narrowed FFN names the channels it keeps, ``{"kind": "narrowed", "source": 3, "channels": "0-99,105"}``.
Another way to make a sub-block (fewer KV heads, linear, side by side) is another ``kind``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from ffn_fusion.blueprint.ranges import LARGEST, format_channels, parse_channels
from ffn_fusion.errors import BlueprintError, UsageError

FusionNorm = Literal["own", "last"]
"""How a fused FFN normalises its input: every FFN with its own scale (exact), or all with the last one's (paper)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ParentBlock(_Frozen):
    """What a parent block has: an attention, a linear layer in its place or none; a gated FFN, a linear one or none."""

    attention: Literal["attention", "linear"] | None
    ffn: Literal["gated", "linear"] | None
    ffn_width: int = Field(ge=0)


class Parent(_Frozen):
    """The model a blueprint is for."""

    name: str
    revision: str | None = None
    blocks: tuple[ParentBlock, ...]


class NoSubBlock(_Frozen):
    kind: Literal["none"] = "none"

    @property
    def sources(self) -> tuple[int, ...]:
        return ()


class KeptSubBlock(_Frozen):
    kind: Literal["kept"] = "kept"
    source: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)


class FusedFfn(_Frozen):
    """The FFNs of ``sources`` as one wide FFN: the sum of them on one shared input (FFN Fusion, theorem 1)."""

    kind: Literal["fused"] = "fused"
    sources: tuple[int, ...] = Field(min_length=2)
    norm: FusionNorm = "own"


def _read_channels(value: Any) -> Any:
    try:
        return parse_channels(value) if isinstance(value, str) else value
    except UsageError as error:
        raise ValueError(error.message) from error


def _ascending(channels: tuple[int, ...]) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in pairwise(channels)):
        raise ValueError("channels must ascend, each once")
    if channels and not 0 <= channels[0] <= channels[-1] <= LARGEST:
        raise ValueError(f"channels count from 0 to {LARGEST:,} at most")
    return channels


Channels = Annotated[
    tuple[int, ...],
    Field(min_length=1),
    BeforeValidator(_read_channels),
    AfterValidator(_ascending),
    PlainSerializer(format_channels, return_type=str, when_used="json"),
]
"""Channels of an FFN in ascending order; in JSON as ranges, since FFNs are tens of thousands of channels wide."""


class NarrowedFfn(_Frozen):
    """``channels`` of the gated FFN of ``source``; the others' part of its sum is left out."""

    kind: Literal["narrowed"] = "narrowed"
    source: int
    channels: Channels

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)


AttentionPlan = Annotated[NoSubBlock | KeptSubBlock, Field(discriminator="kind")]
FfnPlan = Annotated[NoSubBlock | KeptSubBlock | FusedFfn | NarrowedFfn, Field(discriminator="kind")]


class Block(_Frozen):
    """One block of the child."""

    parent_blocks: tuple[int, int]
    attention: AttentionPlan
    ffn: FfnPlan

    @property
    def empty(self) -> bool:
        return self.attention.kind == "none" and self.ffn.kind == "none"


class Blueprint(_Frozen):
    """A child, block by block. Build one with :meth:`identity` and the functions of ``blueprint.edits``.

    Raises:
        BlueprintError: (from :meth:`load`) the file isn't a blueprint, or what it says contradicts itself.
    """

    version: Literal[1] = 1
    parent: Parent
    blocks: tuple[Block, ...]

    @classmethod
    def identity(cls, parent: Parent) -> Self:
        """The empty blueprint: the child is the parent."""
        return cls(
            parent=parent,
            blocks=tuple(
                Block(
                    parent_blocks=(i, i),
                    attention=KeptSubBlock(source=i) if block.attention else NoSubBlock(),
                    ffn=KeptSubBlock(source=i) if block.ffn else NoSubBlock(),
                )
                for i, block in enumerate(parent.blocks)
            ),
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parent = self.parent.blocks
        if not self.blocks:
            raise ValueError("no blocks")
        edges = [(-1, -1), *(block.parent_blocks for block in self.blocks), (len(parent), len(parent))]
        for (_, before), (first, last) in pairwise(edges):
            if first != before + 1 or last < first:
                raise ValueError(
                    f"blocks must cover the parent's {len(parent)} blocks once and in order; "
                    f"after parent block {before} comes {first}-{last}"
                )
        for i, block in enumerate(self.blocks):
            first, last = block.parent_blocks
            for part, sources in (("attention", block.attention.sources), ("ffn", block.ffn.sources)):
                if list(sources) != sorted(set(sources)) or not all(first <= s <= last for s in sources):
                    raise ValueError(f"block {i}: {part} sources {list(sources)} don't lie in order in {first}-{last}")
                for source in sources:
                    if getattr(parent[source], part) is None:
                        raise ValueError(f"block {i}: parent block {source} has no {part}")
            if block.ffn.kind == "fused" and any(parent[s].ffn != "gated" for s in block.ffn.sources):
                raise ValueError(
                    f"block {i}: only gated FFNs can be fused; {list(block.ffn.sources)} holds a linear one"
                )
            if block.ffn.kind == "narrowed":
                _check_narrowed(i, block.ffn, parent[block.ffn.source])
        return self

    # ---- reading it

    def width(self, block: Block) -> int:
        """FFN width of a child block, before padding to what the format can say."""
        if block.ffn.kind == "narrowed":
            return len(block.ffn.channels)
        return sum(self.parent.blocks[source].ffn_width for source in block.ffn.sources)

    @property
    def kept_blocks(self) -> tuple[Block, ...]:
        """The blocks that the child really has: empty ones disappear and the rest are renumbered."""
        return tuple(block for block in self.blocks if not block.empty)

    @property
    def dropped_attentions(self) -> tuple[int, ...]:
        """Parent blocks that had an attention which the child doesn't have."""
        kept = {source for block in self.blocks for source in block.attention.sources}
        return tuple(i for i, block in enumerate(self.parent.blocks) if block.attention and i not in kept)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The fused runs as (first, last) parent blocks, inclusive."""
        return tuple((b.ffn.sources[0], b.ffn.sources[-1]) for b in self.blocks if b.ffn.kind == "fused")

    @property
    def is_identity(self) -> bool:
        return self == Blueprint.identity(self.parent)

    # ---- on disk

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise BlueprintError(
                f"{path}: {error.strerror}", "name a blueprint written by `ffn-fusion plan`"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise BlueprintError(
                f"{path}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}",
                "write the blueprint anew with `ffn-fusion plan`",
            ) from error


def _check_narrowed(i: int, ffn: NarrowedFfn, parent: ParentBlock) -> None:
    if parent.ffn != "gated":
        raise ValueError(f"block {i}: only gated FFNs can be narrowed; that of parent block {ffn.source} is linear")
    if ffn.channels[-1] >= parent.ffn_width:
        raise ValueError(
            f"block {i}: channel {ffn.channels[-1]} is outside the FFN of parent block {ffn.source}, "
            f"which has {parent.ffn_width:,}"
        )
    if len(ffn.channels) == parent.ffn_width:
        raise ValueError(f"block {i}: an FFN narrowed to all of its channels is a kept one")
