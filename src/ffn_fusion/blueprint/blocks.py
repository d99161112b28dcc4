"""The data of a blueprint: the parent that it's for, and the blocks of the child (see ``blueprint.blueprint``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, WrapValidator, field_validator

from ffn_fusion.blueprint.kinds import Kind, PlannedAttention, PlannedFfn
from ffn_fusion.blueprint.sub_blocks import AttentionSpec, BlockSpec, FfnSpec, Part, SubBlock
from ffn_fusion.settings import Frozen


class _WrittenBlock(Frozen):
    """A block of the parent in JSON: kinds, the FFN's width and, where attentions differ in them, numbers of heads."""

    attention: Literal["attention", "linear"] | None
    ffn: Literal["gated", "plain", "linear"] | None
    ffn_width: int = Field(ge=0)
    kv_heads: int = Field(default=0, ge=0)
    heads: int = Field(default=0, ge=0)


def _read_block(value: Any, handler: Any) -> BlockSpec:
    if isinstance(value, BlockSpec):
        return value
    written = _WrittenBlock.model_validate(value)
    return BlockSpec(
        attention=AttentionSpec(written.attention, written.kv_heads, written.heads) if written.attention else None,
        ffn=FfnSpec(written.ffn, written.ffn_width) if written.ffn else None,
    )


def _write_block(block: BlockSpec) -> dict[str, Any]:
    attention, ffn = block.attention, block.ffn
    return _WrittenBlock(
        attention=attention.kind if attention else None,
        ffn=ffn.kind if ffn else None,
        ffn_width=block.ffn_width,
        kv_heads=attention.kv_heads if attention else 0,
        heads=attention.heads if attention else 0,
    ).model_dump(exclude_defaults=True)


def _with_attention(block: BlockSpec, **changes: Any) -> BlockSpec:
    return replace(block, attention=replace(block.attention, **changes)) if block.attention else block


class Parent(Frozen):
    """The model a blueprint is for.

    Where all attentions have as many heads, or as many KV heads, which is the rule, that number isn't kept: it's 0 in
    ``blocks``.
    """

    name: str
    revision: str | None = None
    blocks: tuple[Annotated[BlockSpec, WrapValidator(_read_block), PlainSerializer(_write_block)], ...]

    @field_validator("blocks")
    @classmethod
    def _without_common_heads(cls, blocks: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
        softmax = [block.attention for block in blocks if block.attention and block.attention.kind != "linear"]
        if len({attention.heads for attention in softmax}) <= 1:
            blocks = tuple(_with_attention(block, heads=0) for block in blocks)
        if len({attention.kv_heads for attention in softmax}) <= 1:
            blocks = tuple(_with_attention(block, kv_heads=0) for block in blocks)
        return blocks

    def had(self, part: Part, sources: Sequence[int]) -> list[SubBlock]:
        """The sub-blocks of these blocks, all of which have one."""
        found = [self.blocks[source].part(part) for source in sources]
        return [sub_block for sub_block in found if sub_block is not None]


class Block(Frozen):
    """One block of the child."""

    parent_blocks: tuple[int, int]
    attention: PlannedAttention
    ffn: PlannedFfn

    def part(self, part: Part) -> Kind:
        """How the block's attention or its FFN is made."""
        return self.attention if part == "attention" else self.ffn

    @property
    def side_by_side(self) -> bool:
        """Whether several attentions of the parent are one here."""
        return len(self.attention.sources) > 1

    @property
    def empty(self) -> bool:
        return not self.attention.present and not self.ffn.present
