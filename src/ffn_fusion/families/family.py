"""What the rest of the project asks of a model family: a value per family, listed in ``families.registry``. No torch.

A sub-block's tensors have a key, the same in every family (``ffn.down``), and a role, which says what surgery may do
with them. Only families (and ``modeling`` and the GGUF name table) know what a tensor is called in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ffn_fusion.blueprint import Operation, SubBlock
from ffn_fusion.families import per_block
from ffn_fusion.families.block_lists import Rule, no_lists
from ffn_fusion.families.per_block import PerBlockForm
from ffn_fusion.families.rewriting import Rewriting
from ffn_fusion.families.spec import ModelSpec

Shape = tuple[int, ...]

Role = Literal["norm scale", "norm bias", "into", "into bias", "out of", "out of bias", "scale after", "copied"]
"""What a tensor does in its sub-block: scale or shift of the norm in front; a matrix that reads the normalised state,
or its bias; the matrix that writes to the residual stream, or its bias; the scale of an RMSNorm between that matrix and
the residual stream; anything else, which is only ever copied."""

Along = Literal["width", "heads", "KV heads"]
"""What the inner axis of a tensor counts: FFN channels, query heads or key/value heads (times their size)."""

PACKED = "queries, keys and values are stored in one matrix"
"""Why operations on single heads are impossible with a family."""


@dataclass(frozen=True)
class SubBlockTensor:
    """One tensor of an attention or an FFN.

    ``along`` says what ``axis`` counts; None where no axis is the sub-block's own. A matrix stored as ``Linear`` has
    its width in axis 0 on the way in and in axis 1 on the way out; ``Conv1D`` stores it the other way round.
    ``plus`` is added to the stored numbers before they are used: 1 where a norm's scale is stored less 1. ``stacked``
    matrices of one size, gate and up, are stored as one along axis 0.
    """

    key: str
    shape: Shape
    role: Role
    along: Along | None = None
    axis: int = 0
    plus: float = 0.0
    stacked: int = 1


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors in a checkpoint.

    ``block`` is the prefix of a block with ``{}`` for its number; ``inner`` maps a key to the name behind the prefix.
    """

    embedding: str
    final_norm: str
    head: str
    block: str
    inner: Mapping[str, str] = field(hash=False)

    def prefix(self, block: int) -> str:
        """``model.layers.3.``"""
        return self.block.format(block)

    def of(self, block: int, key: str) -> str:
        """The full name of a block's tensor."""
        return self.prefix(block) + self.inner[key]

    def of_all(self, blocks: Sequence[int], key: str) -> tuple[str, ...]:
        """The full names of the same tensor of several blocks."""
        return tuple(self.of(block, key) for block in blocks)


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: its ``model_type``.
        read: config.json -> sizes. Raises: CheckpointError, FamilyError.
        names: what its tensors are called.
        tensors: the tensors of a sub-block with the norm in front of it, in the order of a forward pass.
        usual: what transformers takes a config field to be that config.json leaves out, where that isn't Llama's.
        rewrite: config.json -> the Llama that a model is in another notation; None for a model that isn't one.
        form: how its children keep the family's own names and config; None: they're written as Nemotron-NAS.
        writer: sizes and the multiple that widths are padded to -> config.json, where ``form`` doesn't say it.
        lists: what lists with an entry a block the config may leave out.
        outer: the tensors outside the blocks beside embedding, final norm and head, by name.
        refuses: operations that it doesn't take, each with the reason.
    """

    name: str
    read: Callable[[Mapping[str, Any]], ModelSpec]
    names: Names
    tensors: Callable[[ModelSpec, SubBlock], Iterator[SubBlockTensor]]
    usual: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rewrite: Callable[[Mapping[str, Any]], Rewriting | None] | None = None
    form: PerBlockForm | None = None
    writer: Callable[[ModelSpec, int], dict[str, Any]] | None = None
    lists: Rule = no_lists
    outer: Callable[[ModelSpec], Mapping[str, Shape]] = lambda spec: {}
    refuses: Mapping[Operation, str] = field(default_factory=dict, hash=False)

    @property
    def child(self) -> str:
        """The family in whose form its children are written."""
        return self.name if self.form else "nemotron-nas"

    @property
    def modules(self) -> str:
        """Import path of the torch modules that compute it, with the functions of ``modeling.llama_shaped``."""
        return f"ffn_fusion.modeling.{'per_block' if self.form else 'llama_shaped'}"

    def write(self, spec: ModelSpec, width_multiple: int) -> dict[str, Any]:
        """config.json of a model in this family's form, with widths that are multiples of ``width_multiple``."""
        if self.form:
            return per_block.write(spec, self.read(spec.config).blocks[0], self.form)
        assert self.writer, f"nothing is written as {self.name}"
        return self.writer(spec, width_multiple)

    def can(self, operation: Operation) -> str | None:
        """Why an operation is impossible with this family; None: it's possible."""
        if self.form and operation == "make linear":
            return "transformers' class has no linear layer in a sub-block's place"
        if self.form and self.form.kv_heads is None and operation == "pool KV heads":
            return "its attentions have a KV head for each query head, always"
        return self.refuses.get(operation)
