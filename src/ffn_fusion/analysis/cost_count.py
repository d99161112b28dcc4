"""A simple count of what a decode step costs, to aim at a speed-up before anything can be measured. No torch.

A step of batch 1 reads every weight once and goes through one sequential step a sub-block, so its time is counted as

    cost = (1 - s) * weights read / the parent's  +  s * sequential steps / the parent's

with s = 0.35 for the share that steps take: launches, synchronisations and all-reduces (about what 8 GPUs with tensor
parallelism show on a 405B model; a small model spends more). A count, not a measurement: `ffn-fusion bench` measures.
"""

from __future__ import annotations

from ffn_fusion.blueprint import PARTS, AttentionSpec, Block, Blueprint, Parent, Part, SubBlock
from ffn_fusion.blueprint.choices import Costs, Price, count_steps
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import head_parameters, sub_block_parameters

STEP_SHARE = 0.35
_BITS_16 = 2


def price_of(spec: ModelSpec, element_size: int = _BITS_16) -> Price:
    """What blocks of a child of this model cost.

    Args:
        element_size: bytes of a weight, and of a number in the KV cache.
    """

    def price(parent: Parent, block: Block) -> Costs:
        made = [sub_block for part in PARTS for sub_block in _made(spec, block, part)]
        parameters = sum(sub_block_parameters(spec, sub_block) for sub_block in made)
        kv_heads = sum(sub_block.kv_heads for sub_block in made if isinstance(sub_block, AttentionSpec))
        return Costs(
            steps=count_steps(parent, block).steps,
            parameters=parameters,  # the sources of a fused FFN count with a norm each
            weight_bytes=parameters * element_size,
            kv_bytes=2 * kv_heads * spec.head_dim * element_size,
        )

    return price


def _made(spec: ModelSpec, block: Block, part: Part) -> list[SubBlock]:
    """What is read for a child's attention or FFN; what is merged counts as its sources."""
    kind = block.part(part)
    had = [sub_block for source in kind.sources if (sub_block := spec.blocks[source].part(part))]
    made = kind.sizes(had) if len(had) == 1 else None
    return [made] if made else had


def costs_of(spec: ModelSpec, blueprint: Blueprint) -> Costs:
    """What all blocks of a child take together."""
    price = price_of(spec)
    return sum((price(blueprint.parent, block) for block in blueprint.blocks), Costs())


def steps(blueprint: Blueprint) -> int:
    """Sequential sub-blocks of the child: one for each kept attention, one for each (fused) FFN."""
    return sum(count_steps(blueprint.parent, block).steps for block in blueprint.blocks)


def counted_speedup(spec: ModelSpec, blueprint: Blueprint) -> float:
    """How many times as fast as the parent the child decodes by this count."""
    kept = costs_of(spec, Blueprint.identity(blueprint.parent))
    reading, stepping = _saved(spec, kept, kept - costs_of(spec, blueprint))
    return 1 / (1 - reading - stepping)


def time_saved(spec: ModelSpec, kept: Costs, saved: Costs) -> float:
    """The share of a decode step's time that is saved by this count; it adds up over choices.

    Args:
        kept: what all blocks of the parent cost. saved: what a child, or a choice, saves of it.
    """
    return sum(_saved(spec, kept, saved))


def _saved(spec: ModelSpec, kept: Costs, saved: Costs) -> tuple[float, float]:
    """The same apart: by weights that needn't be read, by steps that needn't be made."""
    weights = head_parameters(spec) + kept.parameters
    return (1 - STEP_SHARE) * saved.parameters / weights, STEP_SHARE * saved.steps / kept.steps
