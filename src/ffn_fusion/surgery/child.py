"""A child that isn't built yet: blueprint + parent -> every tensor of the child, computed when it's asked for.

One description serves both ends: the builder streams it to disk row by row, and the blockwise engine runs it without
a file. A tensor of the child is a copy of one of the parent's, parts of several joined by ``surgery.fuse_ffn``, or some
channels of one by ``surgery.narrow_ffn``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import child_spec, padded_width
from ffn_fusion.families.layout import (
    EMBEDDING,
    FFN_NORM,
    FINAL_NORM,
    LM_HEAD,
    Shape,
    attention_tensors,
    block_prefix,
    ffn_tensors,
    model_tensors,
)
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.surgery.fold_norm import fold_norm
from ffn_fusion.surgery.fuse_ffn import add_biases, fuse_columns, fuse_rows
from ffn_fusion.surgery.narrow_ffn import narrow_columns, narrow_rows
from ffn_fusion.surgery.repairs import Repairs

Join = Literal["copy", "rows", "columns", "add", "ones", "repaired"]
_ROUNDING_ORDER = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class ChildTensor:
    """How one tensor of the child comes about.

    ``sources`` are the parent's tensors, joined by ``join``; ``scales`` (when given) are the norm scales folded into
    them first, one a source; ``padding`` zero rows or columns follow. ``channels`` (when given) are the only rows or
    columns of the one source that are taken.
    """

    name: str
    dtype: str
    shape: Shape
    join: Join
    sources: tuple[str, ...]
    scales: tuple[str, ...] = ()
    padding: int = 0
    channels: tuple[int, ...] = ()


class Child:
    """The child of ``parent`` that ``blueprint`` describes, tensor by tensor.

    Args:
        width_multiple: FFN widths are padded with zero channels to this; 256 is what engines can load.
        repairs: tensors that take the place of what the blueprint alone would give.
    """

    def __init__(
        self,
        parent: Checkpoint,
        blueprint: Blueprint,
        width_multiple: int = WIDTH_MULTIPLE,
        repairs: Repairs | None = None,
    ) -> None:
        assert blueprint.parent.blocks == parent.spec.parent("").blocks, "a blueprint of another model"
        self.parent = parent
        self.blueprint = blueprint
        self.width_multiple = width_multiple
        self.repairs = repairs

    @cached_property
    def spec(self) -> ModelSpec:
        """Sizes of the child."""
        return child_spec(self.parent.spec, self.blueprint, self.width_multiple)

    @cached_property
    def tensors(self) -> Mapping[str, ChildTensor]:
        """Every tensor of the child, in the order of a forward pass."""
        found: dict[str, ChildTensor] = {EMBEDDING: self._copy(EMBEDDING, EMBEDDING)}
        for i, block in enumerate(self.blueprint.kept_blocks):
            for tensor in self._block_tensors(i, block):
                found[tensor.name] = tensor
        for name in (FINAL_NORM,) if self.spec.tied else (FINAL_NORM, LM_HEAD):
            found[name] = self._copy(name, name)
        assert {n: t.shape for n, t in found.items()} == model_tensors(self.spec)
        return found

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1`` of a tensor of the child, computed from just the rows of the parent that they need."""
        tensor = self.tensors[name]
        dtype = torch_dtype(tensor.dtype)
        if tensor.join == "ones":
            return torch.ones(stop - start, dtype=dtype)
        if tensor.join == "repaired":
            assert self.repairs is not None
            repaired = self.repairs.rows(name, start, stop).to(dtype)
            return fuse_columns([repaired], tensor.padding) if tensor.padding else repaired
        if tensor.join == "rows":
            taken = self._narrowed_rows if tensor.channels else self._joined_rows
            return taken(tensor, start, stop).to(dtype)
        parts = [self.parent.rows(source, start, stop).to(dtype) for source in tensor.sources]
        if tensor.join == "columns":
            parts = [narrow_columns(part, tensor.channels) for part in parts] if tensor.channels else parts
            return fuse_columns(parts, tensor.padding)
        return add_biases(parts) if tensor.join == "add" else parts[0]

    # ---- blocks

    def _width(self, block: Block) -> int:
        return padded_width(self.blueprint, block, self.width_multiple)

    def _block_tensors(self, i: int, block: Block) -> Iterator[ChildTensor]:
        spec = self.spec.blocks[i]
        if block.attention.kind == "kept" and spec.attention:
            for name, _ in attention_tensors(self.spec, spec.attention):
                tensor = self._copy(block_prefix(i) + name, block_prefix(block.attention.source) + name)
                yield replace(tensor, join="repaired") if self._is_repaired(tensor) else tensor
        if spec.ffn:
            for name, shape in ffn_tensors(self.spec, spec.ffn):
                yield self._ffn_tensor(i, block, name, shape)

    def _ffn_tensor(self, i: int, block: Block, name: str, shape: Shape) -> ChildTensor:
        """One tensor of a kept, narrowed or fused FFN. Own norms are folded; with the last one's, others dropped."""
        own = block.ffn.kind == "fused" and block.ffn.norm == "own"
        sources = tuple(block_prefix(source) + name for source in block.ffn.sources)
        padding = self._width(block) - self.blueprint.width(block)
        channels = block.ffn.channels if block.ffn.kind == "narrowed" else ()
        changed = len(sources) > 1 or padding > 0 or bool(channels)
        tensor = ChildTensor(block_prefix(i) + name, self._dtype(sources), shape, "copy", sources)
        if self._is_repaired(tensor):
            return replace(tensor, join="repaired", padding=padding if name.endswith(".weight") else 0)
        if name == FFN_NORM:
            return replace(tensor, join="ones") if own else self._copy(tensor.name, sources[-1])
        if name == "mlp.down_proj.bias":
            return tensor if len(sources) == 1 else replace(tensor, join="add")
        if name == "mlp.down_proj.weight" and changed:
            return replace(tensor, join="columns", padding=padding, channels=channels)
        if name.startswith(("mlp.gate_proj", "mlp.up_proj")) and changed:
            scales = tuple(block_prefix(source) + FFN_NORM for source in block.ffn.sources)
            folded = own and name.endswith(".weight")
            return replace(tensor, join="rows", padding=padding, scales=scales if folded else (), channels=channels)
        return tensor

    def _is_repaired(self, tensor: ChildTensor) -> bool:
        return self.repairs is not None and tensor.name in self.repairs

    def _copy(self, name: str, source: str) -> ChildTensor:
        info = self.parent.tensors[source]
        return ChildTensor(name, info.dtype, info.shape, "copy", (source,))

    def _dtype(self, sources: tuple[str, ...]) -> str:
        """The widest dtype among the sources."""
        return min((self.parent.tensors[source].dtype for source in sources), key=_ROUNDING_ORDER.index)

    # ---- rows

    def _joined_rows(self, tensor: ChildTensor, start: int, stop: int) -> Tensor:
        parts: list[Tensor] = []
        begin = 0  # where the current source begins among the rows of the result
        scales = tensor.scales or (None,) * len(tensor.sources)
        for source, scale in zip(tensor.sources, scales, strict=True):
            count = self.parent.tensors[source].shape[0]
            first, last = max(start - begin, 0), min(stop - begin, count)
            if first < last:
                rows = self.parent.rows(source, first, last)
                parts.append(fold_norm(rows, self.parent.read(scale)) if scale else rows)
            begin += count
        missing = stop - start - sum(part.shape[0] for part in parts)
        if not parts:
            return torch.zeros(missing, *tensor.shape[1:], dtype=torch_dtype(tensor.dtype))
        return fuse_rows(parts, missing)

    def _narrowed_rows(self, tensor: ChildTensor, start: int, stop: int) -> Tensor:
        channels = tensor.channels[start:stop]
        if not channels:
            return torch.zeros(stop - start, *tensor.shape[1:], dtype=torch_dtype(tensor.dtype))
        part = self.parent.rows(tensor.sources[0], channels[0], channels[-1] + 1)
        return fuse_rows([narrow_rows(part, channels, channels[0])], stop - start - len(channels))
