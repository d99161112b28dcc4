"""A simple count of what a decode step costs, to aim at a speed-up before anything can be measured. No torch.

A step of batch 1 reads every weight once and goes through one sequential step a sub-block, so its time is counted as

    cost = (1 - s) * weights read / the parent's  +  s * sequential steps / the parent's

with s = 0.35 for the share that steps take: launches, synchronisations and all-reduces (about what 8 GPUs with tensor
parallelism show on a 405B model; a small model spends more). A count, not a measurement: `ffn-fusion bench` measures.
"""

from __future__ import annotations

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.families import FfnSpec, ModelSpec
from ffn_fusion.families.layout import head_parameters, sub_block_parameters

STEP_SHARE = 0.35


def steps(blueprint: Blueprint) -> int:
    """Sequential sub-blocks of the child: one a kept attention, one a (fused) FFN."""
    return sum((b.attention.kind != "none") + (b.ffn.kind != "none") for b in blueprint.blocks)


def counted_speedup(spec: ModelSpec, blueprint: Blueprint) -> float:
    """How many times as fast as the parent the child's decoding is by this count."""
    cut = sum(
        sub_block_parameters(spec, spec.blocks[block.ffn.source].ffn)
        - sub_block_parameters(spec, FfnSpec("gated", blueprint.width(block)))
        for block in blueprint.blocks
        if block.ffn.kind == "narrowed"
    )
    return counted_speedup_of(
        spec, blueprint.dropped_attentions, steps(Blueprint.identity(blueprint.parent)) - steps(blueprint), cut
    )


def counted_speedup_of(spec: ModelSpec, dropped: tuple[int, ...], steps_saved: int, cut: int = 0) -> float:
    """The same from what is saved: attentions dropped, sequential steps in all (dropped and fused), and ``cut``
    parameters of narrowed FFNs.
    """
    weights = head_parameters(spec) + sum(
        sub_block_parameters(spec, block.attention) + sub_block_parameters(spec, block.ffn) for block in spec.blocks
    )
    saved = cut + sum(sub_block_parameters(spec, spec.blocks[i].attention) for i in dropped)
    all_steps = sum((block.attention is not None) + (block.ffn is not None) for block in spec.blocks)
    return 1 / (1 - (1 - STEP_SHARE) * saved / weights - STEP_SHARE * steps_saved / all_steps)
