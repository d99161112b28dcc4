"""A child that isn't built yet: blueprint + parent -> every tensor of the child, computed when it's asked for.

One description serves both ends: the builder streams it to disk row by row, and the blockwise engine runs it without
a file. What a tensor is made of is the business of its sub-block's kind: see ``surgery.transforms``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.families import ModelSpec, names_of
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.family import Shape
from ffn_fusion.families.layout import block_tensors, model_tensors, outer_tensors
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.surgery.joins import Copy, Join, Wanted
from ffn_fusion.surgery.repairs import Repaired, Repairs
from ffn_fusion.surgery.transforms import TRANSFORMS

_ROUNDING_ORDER = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class ChildTensor:
    """One tensor of the child, and how it comes about."""

    name: str
    dtype: str
    shape: Shape
    join: Join


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
        names, had = names_of(self.spec), names_of(self.parent.spec)
        outer = {names.embedding: had.embedding, names.final_norm: had.final_norm, names.head: had.head}
        made = {
            name: self._tensor(name, shape, Copy(outer.get(name, name)))
            for name, shape in outer_tensors(self.spec).items()
        }
        inside = {tensor.name: tensor for i in range(len(self.spec.blocks)) for tensor in self._block_tensors(i)}
        found = {names.embedding: made.pop(names.embedding), **inside, **made}
        assert {n: t.shape for n, t in found.items()} == model_tensors(self.spec)
        return found

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1`` of a tensor of the child, computed from just the rows of the parent that they need."""
        tensor = self.tensors[name]
        return tensor.join.rows(self.parent, tensor.shape, torch_dtype(tensor.dtype), start, stop)

    def _block_tensors(self, i: int) -> Iterator[ChildTensor]:
        block, names, had = self.blueprint.kept_blocks[i], names_of(self.spec), names_of(self.parent.spec)
        padding = self.spec.blocks[i].ffn_width - self.blueprint.width(block)
        tensors = list(block_tensors(self.spec, i))
        beside = {tensor.key: tensor for _, tensor in tensors}
        for part, tensor in tensors:
            kind, name = block.part(part), names.of(i, tensor.key)
            pad = padding if tensor.along == "width" else 0
            named, made_of = partial(had.of_all, kind.sources), self.parent.spec.had(part, kind.sources)
            wanted = Wanted(tensor, named, beside, made_of, pad)
            join = TRANSFORMS[type(kind)].join(kind, wanted)
            if self.repairs is not None and name in self.repairs:
                join = Repaired(self.repairs, name, pad, join.sources, tensor)
            yield self._tensor(name, tensor.shape, join)

    def _tensor(self, name: str, shape: Shape, join: Join) -> ChildTensor:
        """With the widest dtype among its sources."""
        dtypes = (self.parent.tensors[source].dtype for source in join.sources)
        return ChildTensor(name, min(dtypes, key=_ROUNDING_ORDER.index), shape, join)
