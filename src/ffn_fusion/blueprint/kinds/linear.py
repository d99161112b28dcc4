"""One linear layer in the place of an attention or an FFN (Puzzle, arXiv 2411.19146)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ffn_fusion.blueprint.kinds.kind import Kind, Operation, register_kind
from ffn_fusion.blueprint.sub_blocks import AttentionSpec, FfnSpec, Part, SubBlock


@register_kind
class LinearSubBlock(Kind):
    """One matrix [D, D] that reads the normalised state, in the place of the sub-block of parent block ``source``.

    It begins as values times output of an attention (each token attending to itself), or as up times down of an FFN
    (without gate and activation). A layer that was linear before stays as it is.
    """

    parts: ClassVar[frozenset[Part]] = frozenset(("attention", "ffn"))
    glyph: ClassVar[str | None] = "~"
    fate: ClassVar[str] = "made linear"

    kind: Literal["linear"] = "linear"
    source: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def sizes(self, had: Sequence[SubBlock]) -> SubBlock:
        return AttentionSpec("linear", 0, 0) if isinstance(had[0], AttentionSpec) else FfnSpec("linear", 0)

    def operation(self, part: Part) -> Operation:
        return "make linear"

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        return self.fate, ""
