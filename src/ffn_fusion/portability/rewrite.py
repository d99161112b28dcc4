"""The same function in a form that engines load, decided block by block. Pure: from sizes to sizes, no weights.

Every step is exact: empty blocks are dropped, an attention is taken together with the attention-free block behind it,
KV heads are repeated, zero channels and sub-blocks that add zero are put in. Fusing FFNs is no step here: that changes
what's computed, and is for a plan to decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.families.layout import sub_block_parameters
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.portability.form import FORM_RULES, common_kv_heads
from ffn_fusion.portability.rule import Engine


@dataclass(frozen=True)
class RewrittenBlock:
    """A block of the result: ``spec`` is what it has, ``attention`` and ``ffn`` the blocks that they come from.

    A sub-block that's in ``spec`` and comes from nowhere is made of zeros: it adds zero.
    """

    attention: int | None
    ffn: int | None
    spec: BlockSpec


@dataclass(frozen=True)
class Rewrite:
    """What becomes of a model: its new blocks and sizes, and the steps in words."""

    blocks: tuple[RewrittenBlock, ...]
    spec: ModelSpec
    steps: tuple[str, ...]


def plan_rewrite(spec: ModelSpec, engines: Iterable[Engine]) -> Rewrite:
    """Whatever the rules of ``engines`` ask for, as far as it can be had exactly.

    Empty blocks always go, widths are always rounded up: neither costs anything that matters. The rest is done only
    where one of the engines needs it.
    """
    asked = {rule.name for rule in FORM_RULES for engine in engines if engine in rule.engines}
    work = _Work(spec, asked)
    for step in (work.drop_empty, work.begin_with_attention, work.give_ffns, work.repeat_kv_heads, work.pad_widths):
        step()
    if spec.activation == "swish":
        spec = replace(spec, activation="silu", config={**spec.config, "hidden_act": "silu"})
        work.steps.append("config.json: the activation is called silu")
    blocks = tuple(work.blocks)
    return Rewrite(
        blocks, replace(spec, family="nemotron-nas", blocks=tuple(b.spec for b in blocks)), tuple(work.steps)
    )


class _Work:
    """The steps, one after another. Words name the blocks as they were numbered before."""

    def __init__(self, spec: ModelSpec, asked: set[str]) -> None:
        self.spec = spec
        self.asked = asked
        self.steps: list[str] = []
        self.blocks = [
            RewrittenBlock(i if block.attention else None, i if block.ffn else None, block)
            for i, block in enumerate(spec.blocks)
        ]

    def drop_empty(self) -> None:
        empty = [i for i, block in enumerate(self.spec.blocks) if not block.attention and not block.ffn]
        if len(empty) == len(self.blocks):
            empty = empty[1:]  # one has to stay; what it lacks is given to it below
        self.blocks = [block for i, block in enumerate(self.blocks) if i not in set(empty)]
        self._say(empty, "dropped, empty")

    def begin_with_attention(self) -> None:
        first = self.blocks[0]
        if "first-attention" not in self.asked or first.spec.attention:
            return
        zeros = AttentionSpec("attention", self._fewest_kv_heads())
        self.blocks[0] = replace(first, spec=replace(first.spec, attention=zeros))
        kept = 2 * zeros.kv_heads * self.spec.head_dim
        self.steps.append(
            f"block {first.ffn or 0}: an attention of zeros, {sub_block_parameters(self.spec, zeros):,} parameters "
            f"and {kept:,} values of KV cache a token"
        )

    def give_ffns(self) -> None:
        if "attention-without-ffn" not in self.asked:
            return
        done: list[RewrittenBlock] = []
        for block in self.blocks:
            before = done[-1] if done else None
            if before and before.spec.attention and not before.spec.ffn and not block.spec.attention:
                done[-1] = RewrittenBlock(before.attention, block.ffn, replace(before.spec, ffn=block.spec.ffn))
                self.steps.append(f"blocks {before.attention} and {block.ffn}: taken together")
            else:
                done.append(block)
        zeros = FfnSpec("gated", WIDTH_MULTIPLE)
        for at, block in enumerate(done):
            if block.spec.attention and not block.spec.ffn:
                done[at] = replace(block, spec=replace(block.spec, ffn=zeros))
                count = sub_block_parameters(self.spec, zeros)
                self.steps.append(f"block {block.attention or 0}: an FFN of zeros, {count:,} parameters")
        self.blocks = done

    def repeat_kv_heads(self) -> None:
        if "kv-heads" not in self.asked:
            return
        common = common_kv_heads(replace(self.spec, blocks=tuple(block.spec for block in self.blocks)))
        changed = []
        for at, block in enumerate(self.blocks):
            attention = block.spec.attention
            if attention and attention.kv_heads not in (0, common):
                to = AttentionSpec("attention", common)
                self.blocks[at] = replace(block, spec=replace(block.spec, attention=to))
                changed.append(block.attention or 0)
        self._say(changed, f"KV heads repeated, {common} in all")

    def pad_widths(self) -> None:
        changed = []
        for at, block in enumerate(self.blocks):
            ffn = block.spec.ffn
            if ffn and ffn.width % WIDTH_MULTIPLE:
                wider = FfnSpec("gated", -(-ffn.width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
                self.blocks[at] = replace(block, spec=replace(block.spec, ffn=wider))
                changed.append(block.ffn or 0)
        self._say(changed, f"FFN widths rounded up to multiples of {WIDTH_MULTIPLE} with zero channels")

    def _fewest_kv_heads(self) -> int:
        """For an attention of zeros: as little KV cache as may be. Common heads where all must have the same."""
        counts = [block.spec.attention.kv_heads for block in self.blocks if block.spec.attention]
        softmax = [count for count in counts if count]
        return min(softmax) if softmax else 1

    def _say(self, blocks: list[int], what: str) -> None:
        if blocks:
            self.steps.append(f"block{'s' * (len(blocks) > 1)} {format_blocks(blocks)}: {what}")
