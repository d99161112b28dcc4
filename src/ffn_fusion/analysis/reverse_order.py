"""The reverse-order test of a run (arXiv 2503.18908): FFNs that hardly depend on each other can be reversed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.blockwise.edits import Edit, FusedRun, ReplaceBlocks
from ffn_fusion.blockwise.stack import Stack, TensorSource
from ffn_fusion.families import BlockSpec, ModelSpec, names_of
from ffn_fusion.families.layout import block_tensors

FORMS = ("in order", "reversed", "fused")


@dataclass(frozen=True)
class FfnsOf:
    """The FFNs of some blocks of a model, in an order of one's own, as a model without attentions."""

    source: TensorSource
    order: tuple[int, ...]

    @cached_property
    def spec(self) -> ModelSpec:
        blocks = tuple(BlockSpec(None, self.source.spec.blocks[k].ffn) for k in self.order)
        return replace(self.source.spec, blocks=blocks)

    @cached_property
    def tensors(self) -> Mapping[str, Any]:
        return {name: self.source.tensors[origin] for name, origin in self._origins.items()}

    def read(self, name: str) -> Tensor:
        return self.source.read(self._origins[name])

    @cached_property
    def _origins(self) -> dict[str, str]:
        names = names_of(self.spec)
        return {
            names.of(i, tensor.key): names.of(k, tensor.key)
            for i, k in enumerate(self.order)
            for _, tensor in block_tensors(self.spec, i)
        }


def reverse_order_edits(
    source: TensorSource, runs: Sequence[tuple[int, int]], dtype: torch.dtype, device: str
) -> dict[str, Edit]:
    """For every run: attentions dropped and its FFNs in order, in reverse, and all of them fused."""
    edits: dict[str, Edit] = {}
    for first, last in runs:
        order = tuple(reversed(range(first, last + 1)))
        backwards = Stack(FfnsOf(source, order), dtype=dtype, device=device, resident=False)
        edits[name_of("in order", first, last)] = FusedRun(first, last, first)
        edits[name_of("reversed", first, last)] = ReplaceBlocks(first, last, backwards, tuple(range(len(order))))
        edits[name_of("fused", first, last)] = FusedRun(first, last, last)
    return edits


def name_of(form: str, first: int, last: int) -> str:
    return f"{form} {first}-{last}"
