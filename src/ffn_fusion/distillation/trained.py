"""Which weights are trained: blocks, tensors, and the number of parameters. No torch."""

from __future__ import annotations

from math import prod

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.depths import touched_blocks
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.families import names_of


def trained_blocks(child: Checkpoint, blueprint: Blueprint, settings: DistillSettings) -> tuple[int, ...]:
    """Return the blocks with trained weights, in order."""
    return touched_blocks(blueprint) if settings.only_touched else tuple(range(len(child.spec.blocks)))


def trained_tensors(child: Checkpoint, blueprint: Blueprint, settings: DistillSettings) -> tuple[str, ...]:
    """Return the names of the tensors that change; with LoRA, the matrices that adapters are merged into."""
    if settings.trained == "all":
        return tuple(child.tensors)
    prefixes = tuple(names_of(child.spec).prefix(k) for k in trained_blocks(child, blueprint, settings))
    inside = (name for name in child.tensors if name.startswith(prefixes))
    return tuple(name for name in inside if not settings.lora or len(child.tensors[name].shape) == 2)


def trained_numbers(child: Checkpoint, names: tuple[str, ...], settings: DistillSettings) -> int:
    """Return the number of trained parameters: for an adapter, those of A [rank, in] and B [out, rank]."""
    shapes = [child.tensors[name].shape for name in names]
    return sum(settings.lora_rank * sum(shape) if settings.lora else prod(shape) for shape in shapes)
