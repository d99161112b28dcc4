"""The two kinds that need no arithmetic: a sub-block that isn't there, and one that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ffn_fusion.blueprint.kinds.kind import NAMES, Kind, Operation, register_kind
from ffn_fusion.blueprint.sub_blocks import Part, SubBlock

_BOTH: frozenset[Part] = frozenset(("attention", "ffn"))


@register_kind
class NoSubBlock(Kind):
    """No attention, or no FFN."""

    parts: ClassVar[frozenset[Part]] = _BOTH
    glyph: ClassVar[str | None] = "·"
    fate: ClassVar[str] = "dropped"

    kind: Literal["none"] = "none"

    @property
    def sources(self) -> tuple[int, ...]:
        return ()

    def sizes(self, had: Sequence[SubBlock]) -> None:
        return None

    def operation(self, part: Part) -> Operation:
        return "drop attention" if part == "attention" else "drop FFN"

    def words(self, part: Part) -> str:
        return f"{NAMES[part]} dropped"

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        return "none", ""


@register_kind
class KeptSubBlock(Kind):
    """The sub-block of parent block ``source``, as it is."""

    parts: ClassVar[frozenset[Part]] = _BOTH
    fate: ClassVar[str] = "kept"
    changes: ClassVar[bool] = False

    kind: Literal["kept"] = "kept"
    source: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def sizes(self, had: Sequence[SubBlock]) -> SubBlock:
        return had[0]
