"""What a folder's weight files hold, told in the terms of its family: tensors under the family's names, and the sizes
that they have.

Checkpoints in the wild differ from what their config.json says in a few ways that leave no doubt about what is meant.
Each is a function here, from :class:`Stored` to :class:`Stored`; whatever is doubtful stays as it is, and the reader
refuses it by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ffn_fusion.checkpoint.safetensors_file import TensorInfo, chunks
from ffn_fusion.families import ModelSpec, names_of
from ffn_fusion.families.rewriting import Piece


@dataclass(frozen=True)
class Stored:
    """The sizes of a model, and what is stored of it by name."""

    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]


def read_stored(spec: ModelSpec, found: Mapping[str, TensorInfo]) -> Stored:
    """Name the stored tensors as the family does, and correct the sizes by them.

    Args:
        spec: what config.json says.
        found: the tensors of all weight files.
    """
    return _with_head(Stored(spec, found))


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


def same_content(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors have the same dtype, shape and bytes; reads a megabyte of each at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(chunks(one), chunks(other), strict=True))
