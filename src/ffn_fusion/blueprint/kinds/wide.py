"""Several attentions as one wide attention: blocks side by side (FFN Fusion, arXiv 2503.18908, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import ClassVar, Literal

from pydantic import Field

from ffn_fusion.blueprint.kinds.fused import FusionNorm
from ffn_fusion.blueprint.kinds.kind import Kind, Operation, register_kind
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.blueprint.sub_blocks import AttentionSpec, Part, SubBlock


def common_group(had: Sequence[AttentionSpec]) -> int:
    """Query heads that share a KV head in the wide attention: the most that divides every source's own number."""
    return gcd(*(attention.heads // attention.kv_heads for attention in had if attention.kv_heads))


@register_kind
class WideAttention(Kind):
    """The attentions of ``sources`` as one with all their heads: the sum of them on one shared input.

    Where as many query heads share a KV head in all of them, there are as many KV heads as in the sources together;
    otherwise those of larger groups are repeated.
    """

    parts: ClassVar[frozenset[Part]] = frozenset(("attention",))
    fate: ClassVar[str] = "side by side"

    kind: Literal["wide"] = "wide"
    sources: tuple[int, ...] = Field(min_length=2)
    norm: FusionNorm = "own"

    def sizes(self, had: Sequence[SubBlock]) -> AttentionSpec:
        attentions = [attention for attention in had if isinstance(attention, AttentionSpec)]
        heads = sum(attention.heads for attention in attentions)
        group = common_group(attentions)
        return AttentionSpec("attention", heads // group if group else 0, heads)

    def check(self, had: Sequence[SubBlock]) -> None:
        if any(attention.kind == "linear" for attention in had):
            raise ValueError(
                f"a linear layer in an attention's place can't be put side by side, and {list(self.sources)} holds one"
            )

    def operation(self, part: Part) -> Operation:
        return "side by side"

    def words(self, part: Part) -> str:
        return f"attentions {format_blocks(self.sources)} {self.fate}"

    def cells(self, part: Part, had: Sequence[SubBlock]) -> tuple[str, str]:
        return f"{len(self.sources)} {self.fate} ({format_blocks(self.sources)})", ""

    def label(self, part: Part, had: Sequence[SubBlock]) -> str:
        return f"{len(self.sources)} attentions {self.fate}"
