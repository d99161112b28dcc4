"""What an attention or an FFN is, in sizes: the one description that blueprints, families and everything else share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self, get_args

from pydantic import Field

Part = Literal["attention", "ffn"]
"""A sub-block of a block: its attention or its FFN."""
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class AttentionSpec:
    """Softmax attention with ``heads`` query heads that share ``kv_heads`` K/V heads evenly, or one linear layer [D, D]
    in its place, which has neither.
    """

    kind: Literal["attention", "linear"]
    kv_heads: Annotated[int, Field(ge=0)]
    heads: Annotated[int, Field(ge=0)]

    def padded(self, width_multiple: int) -> Self:
        """Attentions are stored as they are."""
        return self


@dataclass(frozen=True)
class FfnSpec:
    """FFN of ``width`` F, gated or plain (without a gate), or one linear layer [D, D] in its place (``width`` 0)."""

    kind: Literal["gated", "plain", "linear"]
    width: Annotated[int, Field(ge=0)]

    def padded(self, width_multiple: int) -> Self:
        """The FFN with its width rounded up to a multiple of ``width_multiple``."""
        return replace(self, width=-(-self.width // width_multiple) * width_multiple)


SubBlock = AttentionSpec | FfnSpec


@dataclass(frozen=True)
class BlockSpec:
    """A block: its attention and its FFN, either of which may be missing."""

    attention: AttentionSpec | None
    ffn: FfnSpec | None

    def part(self, part: Part) -> SubBlock | None:
        """The block's attention or its FFN."""
        return self.attention if part == "attention" else self.ffn

    @property
    def ffn_width(self) -> int:
        """F of the FFN; 0 of a linear one, or where there is none."""
        return self.ffn.width if self.ffn else 0
