"""What a folder's weight files hold, told in the terms of its family: tensors under the family's names, and the sizes
that they have.

Checkpoints in the wild differ from what their config.json says in a few ways that leave no doubt about what is meant.
Each is a function here, from :class:`Stored` to :class:`Stored`; whatever is doubtful stays as it is, and the reader
refuses it by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.checkpoint.computed import ComputedTensor, ModelTensor
from ffn_fusion.checkpoint.fp8 import dequantised
from ffn_fusion.checkpoint.safetensors_file import TensorInfo, chunks
from ffn_fusion.checkpoint.tensor_names import block_numbers, family_names, renumbered
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import AttentionSpec, FfnSpec, ModelSpec, names_of
from ffn_fusion.families.block_lists import cut_lists
from ffn_fusion.families.layout import block_tensors
from ffn_fusion.families.quantised import UNQUANTISE
from ffn_fusion.families.rewriting import Piece

_FLOATS = ("F64", "F32", "F16", "BF16")
_PACKED = (".qweight", ".qzeros", ".g_idx", ".weight_packed", ".scales", ".absmax", ".quant_map", ".SCB")
"""Ends of names that GPTQ, AWQ, compressed-tensors, MLX and bitsandbytes write."""
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer)\.")


@dataclass(frozen=True)
class Stored:
    """The sizes of a model, and what is stored of it by name.

    ``notes`` say in words what is read otherwise than it is stored, so that no other program reads the folder as it is.
    """

    spec: ModelSpec
    tensors: Mapping[str, ModelTensor]
    notes: tuple[str, ...] = ()

    def noted(self, note: str) -> Stored:
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))


@dataclass(frozen=True)
class Scaling:
    """How 8-bit weights are dequantised: to which dtype, and which blocks [rows, columns] share a scale."""

    dtype: str
    block: tuple[int, int]


def read_stored(
    spec: ModelSpec, found: Mapping[str, TensorInfo], scaling: Scaling, *, renumber: bool = False
) -> Stored:
    """Name the stored tensors as the family does, and correct the sizes by them.

    Args:
        spec: what config.json says.
        found: the tensors of all weight files.
        scaling: of 8-bit weights, where there are any.
        renumber: number blocks anew where numbers are missing between them.

    Raises:
        CheckpointError: two tensors have one name, numbers of blocks are missing, or an adapter isn't merged.
        FamilyError: the weights are quantised in a form that isn't read.
    """
    tensors = dequantised(found, scaling.dtype, scaling.block)
    _check_plain(tensors)
    stored = Stored(spec, tensors, spec.notes)
    if any(isinstance(tensor, ComputedTensor) for tensor in tensors.values()):
        stored = stored.noted(f"8-bit weights are dequantised to {scaling.dtype}")
    stored = _with_names(stored)
    stored = _with_numbers(stored, renumber)
    return _with_head(_with_sizes(stored))


def _check_plain(tensors: Mapping[str, ModelTensor]) -> None:
    if unmerged := [name for name in tensors if _ADAPTER.search(name)]:
        raise CheckpointError(
            f"tensor {unmerged[0]} is of a LoRA adapter that isn't merged",
            "merge it first (merge_and_unload and save_pretrained of peft), then give the merged model",
        )
    integers = [name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dtype not in _FLOATS]
    packed = [name for name in tensors if name.endswith(_PACKED)]
    for name in (*integers, *packed):
        raise FamilyError(f"the weights are quantised (tensor {name} is {tensors[name].dtype})", UNQUANTISE)


def _with_names(stored: Stored) -> Stored:
    """Without a note where just the family's own first word is missing: transformers adds it too."""
    named = family_names(names_of(stored.spec), stored.tensors)
    renamed = replace(stored, tensors={named[name]: info for name, info in stored.tensors.items()})
    changed = next((name for name, plain in named.items() if not plain.endswith(name)), None)
    if changed is None:
        return renamed
    return renamed.noted(f"tensors are read under their family's names: {changed} as {named[changed]}")


def _with_numbers(stored: Stored, renumber: bool) -> Stored:
    """The blocks that are stored, numbered 0, 1, 2 ... Nothing changes where no number below the largest is missing."""
    names, spec = names_of(stored.spec), stored.spec
    numbers, count = block_numbers(names, stored.tensors), len(spec.blocks)
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers)) if numbers else []
    expected = [i for i, block in enumerate(spec.blocks) if block.attention or block.ffn]
    if not missing or set(expected) <= set(numbers):
        return stored
    if not renumber or len(numbers) > count:
        raise CheckpointError(
            f"blocks {format_blocks(missing)} aren't stored; {len(numbers)} others are, up to {numbers[-1]}",
            "if they were taken out of the model, add --renumber: the others are then numbered in their order",
        )
    if len(numbers) < count:  # config.json still describes all of them
        if numbers[-1] >= count:
            raise CheckpointError(
                f"{len(numbers)} blocks are stored, up to number {numbers[-1]}, and config.json has {count}",
                "correct num_hidden_layers",
            )
        blocks = tuple(spec.blocks[i] for i in numbers)
        config = cut_lists(spec.config, numbers, [block.attention is not None for block in blocks])
        spec = replace(spec, blocks=blocks, config=config)
    new = renumbered(names, stored.tensors, numbers)
    tensors = {new[name]: info for name, info in stored.tensors.items()}
    note = f"blocks are numbered anew, without {format_blocks(missing)}"
    return replace(stored, spec=spec, tensors=tensors).noted(note)


def _with_sizes(stored: Stored) -> Stored:
    """FFN widths and KV heads as stored, where config.json has one number for all blocks and they differ.

    Where all blocks agree on another number than config.json's, or the tensors of a block disagree, nothing changes.
    """
    spec = stored.spec
    if len(set(spec.blocks)) != 1 or any(piece.rows for piece in spec.pieces.values()):
        return stored
    widths = [_size(stored, i, "width", 1) for i in range(len(spec.blocks))]
    kv_heads = [_size(stored, i, "KV heads", spec.head_dim) for i in range(len(spec.blocks))]
    notes, blocks = [], list(spec.blocks)
    if len(set(widths)) > 1 and all(widths):
        blocks = [
            replace(block, ffn=replace(block.ffn, width=width)) if isinstance(block.ffn, FfnSpec) else block
            for block, width in zip(blocks, widths, strict=True)
        ]
        notes.append("FFN widths differ by block, as the weights say")
    if len(set(kv_heads)) > 1 and all(heads and spec.heads % heads == 0 for heads in kv_heads):
        blocks = [
            replace(block, attention=replace(block.attention, kv_heads=heads))
            if isinstance(block.attention, AttentionSpec)
            else block
            for block, heads in zip(blocks, kv_heads, strict=True)
        ]
        notes.append("KV heads differ by block, as the weights say")
    return replace(stored, spec=replace(spec, blocks=tuple(blocks)), notes=(*stored.notes, *notes))


def _size(stored: Stored, block: int, along: str, unit: int) -> int:
    """What the stored tensors of a block have along an axis, in units; 0 where they don't agree."""
    names = names_of(stored.spec)
    found = set()
    for _, tensor in block_tensors(stored.spec, block):
        info = stored.tensors.get(names.of(block, tensor.key))
        if tensor.along == along and info is not None and tensor.axis < len(info.shape):
            found.add(info.shape[tensor.axis])
    size = found.pop() if len(found) == 1 else 0
    return size // unit if size % unit == 0 else 0


def _with_head(stored: Stored) -> Stored:
    """Decide by what is stored whether the head is the embedding, as transformers 5 does.

    A head that is stored beside the embedding of a tied model is the model's own where the two differ, and is dropped
    where they are equal. One that is stored in the embedding's place is the embedding.
    """
    spec, names, tensors = stored.spec, names_of(stored.spec), dict(stored.tensors)
    rewritten = names.head in spec.pieces and spec.pieces[names.head].name == names.embedding
    if names.head not in tensors or not (spec.tied or rewritten):
        return stored
    if names.embedding not in tensors:
        tensors[names.embedding] = tensors.pop(names.head)
        return replace(stored, tensors=tensors)
    if same_content(tensors[names.embedding], tensors[names.head]):
        del tensors[names.head]
        return replace(stored, tensors=tensors)
    pieces = {**spec.pieces, names.head: Piece(names.head)} if rewritten else spec.pieces
    config = {**spec.config, "tie_word_embeddings": False}
    return replace(stored, spec=replace(spec, tied=False, config=config, pieces=pieces))


def same_content(one: ModelTensor, other: ModelTensor) -> bool:
    """Whether two stored tensors have the same dtype, shape and bytes; reads a megabyte of each at a time."""
    if not isinstance(one, TensorInfo) or not isinstance(other, TensorInfo):
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(chunks(one), chunks(other), strict=True))
