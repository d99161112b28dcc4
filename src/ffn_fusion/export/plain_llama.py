"""A model as a plain Llama: which blocks keep it from being one. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.errors import CheckError
from ffn_fusion.families import BlockSpec, ModelSpec
from ffn_fusion.families.layout import model_tensors
from ffn_fusion.portability.rewrite import Rewrite, plan_uniform

_NATIVE = "--to nemotron-nas keeps it as it is"
_SHOWN = 3


def plan_llama(name: str, spec: ModelSpec, *, pad: bool) -> Rewrite:
    """How a model becomes a plain Llama, all of whose blocks are alike.

    What costs nothing is done in any case: empty blocks go, an attention is taken together with the FFN of the
    attention-free block behind it. The rest, zero channels, repeated KV heads and sub-blocks of zeros, is done with
    ``pad`` only.

    Raises:
        CheckError: it can't be one, or would cost something without ``pad``; with the blocks, and what it would cost.
    """
    if linear := _differences(spec, _linear):
        raise CheckError(f"{name}: isn't a plain Llama: {linear}", f"{_NATIVE}; no Llama computes a linear layer there")
    rewrite = plan_uniform(spec)
    biases = rewrite.spec.attention_bias  # of the output too, which are no padding: a Llama has all four or none
    before, after = _parameters(replace(spec, attention_bias=biases)), _parameters(rewrite.spec)
    kept, keeps = spec.kv_bytes_per_token(1), rewrite.spec.kv_bytes_per_token(1)
    if pad or (after <= before and keeps <= kept):
        return rewrite
    raise CheckError(
        f"{name}: isn't a plain Llama: {_differences(spec, _uneven(spec))}",
        f"{_NATIVE}; --pad fills it up with zeros, which are computed too: {before / 1e6:,.1f} -> {after / 1e6:,.1f} "
        f"million parameters, {kept:,} -> {keeps:,} values of KV cache a token",
    )


def _parameters(spec: ModelSpec) -> int:
    return sum(prod(shape) for shape in model_tensors(spec).values())


# ---- what keeps it from being one


def _differences(spec: ModelSpec, differs: Callable[[BlockSpec], list[str]]) -> str:
    """What blocks have that a plain Llama's don't, each with the blocks: the first few. Empty where they're alike."""
    found: dict[str, list[int]] = {}
    for i, block in enumerate(spec.blocks):
        for what in differs(block):
            found.setdefault(what, []).append(i)
    words = [f"{what} in block{'s' * (len(at) > 1)} {format_blocks(at)}" for what, at in found.items()]
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more


def _linear(block: BlockSpec) -> list[str]:
    parts = {"an attention": block.attention, "an FFN": block.ffn}
    return [f"a linear layer in place of {name}" for name, part in parts.items() if part and part.kind == "linear"]


def _uneven(spec: ModelSpec) -> Callable[[BlockSpec], list[str]]:
    """What a block has that most others haven't."""
    heads = _commonest(block.attention.heads for block in spec.blocks if block.attention)
    kv_heads = _commonest(block.attention.kv_heads for block in spec.blocks if block.attention)
    width = _commonest(block.ffn.width for block in spec.blocks if block.ffn)

    def differs(block: BlockSpec) -> list[str]:
        words = []
        if block.attention is None:
            words.append("no attention")
        elif block.attention.heads != heads:
            words.append(f"{block.attention.heads} heads and not {heads}")
        elif block.attention.kv_heads != kv_heads:
            words.append(f"{block.attention.kv_heads} KV heads and not {kv_heads}")
        if block.ffn is None:
            words.append("no FFN")
        elif block.ffn.width != width:
            words.append(f"an FFN {block.ffn.width:,} wide and not {width:,}")
        return words

    return differs


def _commonest(numbers: Iterable[int]) -> int:
    ranked = Counter(numbers).most_common(1)
    return ranked[0][0] if ranked else 0
