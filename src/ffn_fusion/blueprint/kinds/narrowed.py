"""An FFN with fewer channels (Puzzle, arXiv 2411.19146)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from ffn_fusion.blueprint.kinds.kind import Kind, Operation, register_kind
from ffn_fusion.blueprint.ranges import LARGEST, format_channels, parse_channels
from ffn_fusion.blueprint.sub_blocks import FfnSpec, Part, SubBlock
from ffn_fusion.errors import UsageError


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


@register_kind
class NarrowedFfn(Kind):
    """``channels`` of the gated FFN of ``source``; the others' part of its sum is left out."""

    parts: ClassVar[frozenset[Part]] = frozenset(("ffn",))
    glyph: ClassVar[str | None] = "▪"
    fate: ClassVar[str] = "narrowed"

    kind: Literal["narrowed"] = "narrowed"
    source: int
    channels: Channels

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def sizes(self, had: Sequence[SubBlock]) -> FfnSpec:
        ffn = had[0]
        assert isinstance(ffn, FfnSpec)
        return replace(ffn, width=len(self.channels))

    def check(self, had: Sequence[SubBlock]) -> None:
        ffn = had[0]
        if not isinstance(ffn, FfnSpec) or ffn.kind == "linear":
            raise ValueError(f"a linear layer in an FFN's place can't be narrowed: that of parent block {self.source}")
        if self.channels[-1] >= ffn.width:
            raise ValueError(
                f"channel {self.channels[-1]} is outside the FFN of parent block {self.source}, which has {ffn.width:,}"
            )
        if len(self.channels) == ffn.width:
            raise ValueError("an FFN narrowed to all of its channels is a kept one")

    def operation(self, part: Part) -> Operation:
        return "narrow"

    def words(self, part: Part) -> str:
        return f"FFN {self.source} narrowed to {len(self.channels):,}"

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        return self.fate, f"{len(self.channels):,} of {_width(had):,}"

    def label(self, part: Part, had: Sequence[SubBlock]) -> str:
        return f"FFN {len(self.channels):,} wide, narrowed from {_width(had):,}"


def _width(had: Sequence[SubBlock]) -> int:
    assert isinstance(had[0], FfnSpec)
    return had[0].width
