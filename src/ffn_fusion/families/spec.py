"""What a model is made of, in one form for every family: read from its config, before any weight is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ffn_fusion.blueprint import AttentionSpec, BlockSpec, FfnSpec, Parent, Part, SubBlock
from ffn_fusion.families.rewriting import Piece

__all__ = ["AttentionSpec", "BlockSpec", "FfnSpec", "ModelSpec"]


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and switches of a model.

    ``config`` is its config.json, for what is passed on unchanged: as it was read, or rewritten in Llama's form where
    ``pieces`` says what tensors are made of that are stored in another one. ``heads``: query heads of an attention, as
    config.json says it for all blocks; where they differ, ``blocks`` say it. ``attention_bias`` is that of Q, K, V and
    the output; ``qkv_bias`` of Q, K and V alone. ``side_by_side``: a block's FFN reads the block's input and not what
    its attention made of it. ``positions``: the most tokens of a sequence, where positions are learned. ``unread``:
    stored tensors that belong to no part of the model. ``notes``: what config.json says in a form that other programs
    don't read.
    """

    family: str
    hidden_size: int
    heads: int
    head_dim: int
    vocab_size: int
    blocks: tuple[BlockSpec, ...]
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    activation: str
    norm_eps: float
    config: Mapping[str, Any] = field(repr=False, hash=False)
    qkv_bias: bool = False
    side_by_side: bool = False
    positions: int | None = None
    pieces: Mapping[str, Piece] = field(default_factory=dict, repr=False, hash=False)
    unread: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def parent(self, name: str, revision: str | None = None) -> Parent:
        """This model as the parent of a blueprint."""
        return Parent(name=name, revision=revision, blocks=self.blocks)

    def had(self, part: Part, sources: Sequence[int]) -> list[SubBlock]:
        """The attentions or FFNs of these blocks that have one."""
        found = (self.blocks[source].part(part) for source in sources)
        return [sub_block for sub_block in found if sub_block is not None]

    @property
    def head_counts(self) -> tuple[int, ...]:
        """The numbers of query heads that attentions of the model have, each once; that of the config without any."""
        counts = {block.attention.heads for block in self.blocks if block.attention and block.attention.heads}
        return tuple(sorted(counts)) or (self.heads,)

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes that one token adds to the KV cache of one sequence."""
        kv_heads = sum(block.attention.kv_heads for block in self.blocks if block.attention)
        return 2 * kv_heads * self.head_dim * element_size
