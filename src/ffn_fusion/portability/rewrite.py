"""The same function in a form that engines load, decided block by block. Pure: from sizes to sizes, no weights.

Every step is exact: empty blocks are dropped, an attention is taken together with the attention-free block behind it,
KV heads are repeated, zero channels and sub-blocks that add zero are put in. Fusing FFNs is no step here: that changes
what's computed, and is for a plan to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ffn_fusion.blueprint import Part
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.families.block_lists import cut_lists
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

    def origin(self, part: Part) -> int | None:
        """The block that a sub-block comes from."""
        return self.attention if part == "attention" else self.ffn


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
    work.drop_empty()
    work.begin_with_attention()
    work.take_together()
    work.give_ffns()
    work.repeat_kv_heads()
    work.pad_widths()
    work.bias_outputs()
    return work.result("nemotron-nas")


def plan_uniform(spec: ModelSpec) -> Rewrite:
    """Blocks all alike, as a plain Llama has them: what a block lacks is put in as zeros, up to the widest FFN and the
    common number of KV heads. A model whose blocks are alike stays as it is.

    Linear layers stay too: nothing exact makes an attention or a gated FFN of them.
    """
    work = _Work(spec, {"attention-without-ffn", "kv-heads", "qkv-bias"})
    work.width_of_zeros = max((block.ffn.width for block in spec.blocks if block.ffn), default=0) or WIDTH_MULTIPLE
    work.drop_empty()
    work.take_together()
    work.give_attentions()
    work.give_ffns()
    work.repeat_kv_heads()
    work.widen()
    work.bias_outputs()
    return work.result("llama")


class _Work:
    """The steps, one after another. Words name the blocks as they were numbered before."""

    def __init__(self, spec: ModelSpec, asked: set[str]) -> None:
        self.spec = spec
        self.asked = asked
        self.steps: list[str] = []
        self.width_of_zeros = WIDTH_MULTIPLE
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
        zeros = AttentionSpec("attention", self._fewest_kv_heads(), self.spec.heads)
        self.blocks[0] = replace(first, spec=replace(first.spec, attention=zeros))
        kept = 2 * zeros.kv_heads * self.spec.head_dim
        self.steps.append(
            f"block {first.ffn or 0}: an attention of zeros, {sub_block_parameters(self.spec, zeros):,} parameters "
            f"and {kept:,} values of KV cache a token"
        )

    def take_together(self) -> None:
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
        self.blocks = done

    def give_ffns(self) -> None:
        if "attention-without-ffn" not in self.asked:
            return
        zeros = FfnSpec("gated", self.width_of_zeros)
        for at, block in enumerate(self.blocks):
            if block.spec.attention and not block.spec.ffn:
                self.blocks[at] = replace(block, spec=replace(block.spec, ffn=zeros))
                count = sub_block_parameters(self.spec, zeros)
                self.steps.append(f"block {block.attention or 0}: an FFN of zeros, {count:,} parameters")

    def repeat_kv_heads(self) -> None:
        if "kv-heads" not in self.asked:
            return
        common = common_kv_heads(replace(self.spec, blocks=tuple(block.spec for block in self.blocks)))
        changed = []
        for at, block in enumerate(self.blocks):
            attention = block.spec.attention
            if attention and attention.kv_heads not in (0, common):
                to = replace(attention, kv_heads=common)
                self.blocks[at] = replace(block, spec=replace(block.spec, attention=to))
                changed.append(block.attention or 0)
        self._say(changed, f"KV heads repeated, {common} in all")

    def give_attentions(self) -> None:
        common = common_kv_heads(replace(self.spec, blocks=tuple(block.spec for block in self.blocks)))
        zeros = AttentionSpec("attention", common or 1, self.spec.heads)
        changed = []
        for at, block in enumerate(self.blocks):
            if not block.spec.attention:
                self.blocks[at] = replace(block, spec=replace(block.spec, attention=zeros))
                changed.append(block.ffn or 0)
        self._say(changed, f"an attention of zeros, {sub_block_parameters(self.spec, zeros):,} parameters each")

    def pad_widths(self) -> None:
        changed = self._pad(lambda width: -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
        self._say(changed, f"FFN widths rounded up to multiples of {WIDTH_MULTIPLE} with zero channels")

    def widen(self) -> None:
        changed = self._pad(lambda width: self.width_of_zeros)
        self._say(changed, f"FFNs widened to {self.width_of_zeros:,} with zero channels")

    def bias_outputs(self) -> None:
        """Where Q, K and V alone have biases, the output gets one too: a Llama has them on all four or on none."""
        if "qkv-bias" not in self.asked or not self.spec.qkv_bias:
            return
        if not self.spec.attention_bias:
            self.steps.append(f"attentions: an output bias of zeros, {self.spec.hidden_size:,} parameters each")
        config = {key: value for key, value in self.spec.config.items() if key != "qkv_bias"}
        config["attention_bias"] = True
        self.spec = replace(self.spec, qkv_bias=False, attention_bias=True, config=config)

    def result(self, family: Literal["nemotron-nas", "llama"]) -> Rewrite:
        """What has become of the model, with its activation under its usual name."""
        spec, blocks = self.spec, tuple(self.blocks)
        if spec.activation == "swish":
            spec = replace(spec, activation="silu", config={**spec.config, "hidden_act": "silu"})
            self.steps.append("config.json: the activation is called silu")
        places = [(b.ffn or 0) if b.attention is None else b.attention for b in blocks]
        config = cut_lists(spec.config, places, [b.spec.attention is not None for b in blocks])
        spec = replace(spec, family=family, blocks=tuple(b.spec for b in blocks), config=config)
        return Rewrite(blocks, spec, tuple(self.steps))

    def _pad(self, to: Callable[[int], int]) -> list[int]:
        """Give every gated FFN zero channels; the blocks that changed."""
        changed = []
        for at, block in enumerate(self.blocks):
            ffn = block.spec.ffn
            if ffn and ffn.kind != "linear" and to(ffn.width) != ffn.width:
                wider = FfnSpec("gated", to(ffn.width))
                self.blocks[at] = replace(block, spec=replace(block.spec, ffn=wider))
                changed.append(block.ffn or 0)
        return changed

    def _fewest_kv_heads(self) -> int:
        """For an attention of zeros: as little KV cache as may be. Common heads where all must have the same."""
        counts = [block.spec.attention.kv_heads for block in self.blocks if block.spec.attention]
        softmax = [count for count in counts if count]
        return min(softmax) if softmax else 1

    def _say(self, blocks: list[int], what: str) -> None:
        if blocks:
            self.steps.append(f"block{'s' * (len(blocks) > 1)} {format_blocks(blocks)}: {what}")
