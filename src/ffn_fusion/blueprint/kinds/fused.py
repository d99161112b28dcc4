"""Several FFNs as one wide FFN (FFN Fusion, arXiv 2503.18908, theorem 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from ffn_fusion.blueprint.kinds.kind import Kind, Operation, register_kind
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.blueprint.sub_blocks import FfnSpec, Part, SubBlock

FusionNorm = Literal["own", "last"]
"""How a fused FFN normalises its input: every FFN with its own scale (exact), or all with the last one's (paper)."""


@register_kind
class FusedFfn(Kind):
    """The FFNs of ``sources`` as one wide FFN: the sum of them on one shared input."""

    parts: ClassVar[frozenset[Part]] = frozenset(("ffn",))
    fate: ClassVar[str] = "fused"

    kind: Literal["fused"] = "fused"
    sources: tuple[int, ...] = Field(min_length=2)
    norm: FusionNorm = "own"

    def sizes(self, had: Sequence[SubBlock]) -> FfnSpec:
        first = had[0]
        assert isinstance(first, FfnSpec)
        return replace(first, width=sum(_widths(had)))

    def check(self, had: Sequence[SubBlock]) -> None:
        if any(ffn.kind == "linear" for ffn in had):
            raise ValueError(f"a linear layer in an FFN's place can't be fused, and {list(self.sources)} holds one")

    def operation(self, part: Part) -> Operation:
        return "fuse"

    def words(self, part: Part) -> str:
        return f"FFN {self.sources[0]}-{self.sources[-1]} fused"

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        widths = _widths(had)
        total = f"{sum(widths):,}"
        shown = f"{min(widths):,} to {max(widths):,}, {total} in all"
        if len(set(widths)) == 1:
            shown = f"{len(widths)} × {widths[0]:,} = {total}"  # noqa: RUF001
        whole = len(self.sources) == self.sources[-1] + 1 - self.sources[0]
        which = "" if whole else f" ({format_blocks(self.sources)})"
        return f"{len(widths)} fused{which}", shown

    def label(self, part: Part, had: Sequence[SubBlock]) -> str:
        return f"{len(self.sources)} FFNs fused, {sum(_widths(had)):,} wide"


def _widths(had: Sequence[SubBlock]) -> list[int]:
    return [ffn.width for ffn in had if isinstance(ffn, FfnSpec)]
