"""An attention with fewer KV heads (GQA, arXiv 2305.13245; Puzzle, arXiv 2411.19146)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from ffn_fusion.blueprint.kinds.kind import Kind, Operation, register_kind
from ffn_fusion.blueprint.sub_blocks import AttentionSpec, Part, SubBlock


@register_kind
class PooledAttention(Kind):
    """The attention of ``source`` with fewer KV heads, each the mean of neighbouring ones."""

    parts: ClassVar[frozenset[Part]] = frozenset(("attention",))
    glyph: ClassVar[str | None] = "△"
    fate: ClassVar[str] = "pooled"

    kind: Literal["pooled"] = "pooled"
    source: int
    kv_heads: int = Field(ge=1)

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def sizes(self, had: Sequence[SubBlock]) -> AttentionSpec:
        attention = had[0]
        assert isinstance(attention, AttentionSpec)
        return replace(attention, kv_heads=self.kv_heads)

    def check(self, had: Sequence[SubBlock]) -> None:
        attention = had[0]
        if not isinstance(attention, AttentionSpec) or attention.kind == "linear":
            raise ValueError(f"a linear layer has no KV heads to pool: that of parent block {self.source}")
        if attention.kv_heads and (attention.kv_heads % self.kv_heads or attention.kv_heads == self.kv_heads):
            raise ValueError(
                f"the {attention.kv_heads} KV heads of parent block {self.source} can't be pooled to {self.kv_heads}"
            )

    def operation(self, part: Part) -> Operation:
        return "pool KV heads"

    def words(self, part: Part) -> str:
        return f"attention {self.source} pooled to {_counted(self.kv_heads)}"

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        return self.fate, _counted(self.kv_heads)

    def label(self, part: Part, had: Sequence[SubBlock]) -> str:
        return f"attention with {_counted(self.kv_heads)}"


def _counted(heads: int) -> str:
    return f"{heads} KV head{'s' * (heads > 1)}"
