"""Tensors that a checkpoint holds in another form than the model's: rows of a stored tensor, or scaled ones.

Rows of a stored tensor are stored bytes themselves. What has to be computed is computed some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ffn_fusion.checkpoint.safetensors_file import Sized, TensorInfo
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import model_tensors
from ffn_fusion.families.rewriting import Piece

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ComputedTensor(Sized):
    """A tensor that is computed from stored ones. ``rows`` gives rows ``start..stop-1`` of it in ``dtype``."""

    dtype: str
    shape: tuple[int, ...]
    sources: tuple[TensorInfo, ...]
    rows: Callable[[int, int], Tensor]


ModelTensor = TensorInfo | ComputedTensor


def stored_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of this model stores, by name, with their shapes."""
    pieces = ((spec.pieces.get(name, Piece(name)), shape) for name, shape in model_tensors(spec).items())
    return {piece.name: stored_shape(piece, shape) for piece, shape in pieces}


def stored_shape(piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the stored tensor that a piece of this shape is taken from."""
    return (piece.rows[2], *shape[1:]) if piece.rows else shape


def taken(piece: Piece, stored: ModelTensor) -> ModelTensor:
    """What the piece is of a stored tensor, or of one that was dequantised."""
    tensor = _rows_of(stored, *piece.rows[:2]) if piece.rows else stored
    if piece.factor == 1.0:
        return tensor

    def rows(start: int, stop: int) -> Tensor:
        """Multiplied in float64, so that a number is rounded once."""
        found = rows_of(tensor, start, stop)
        return (found.double() * piece.factor).to(found.dtype)

    return ComputedTensor(tensor.dtype, tensor.shape, sources_of(tensor), rows)


def _rows_of(tensor: ModelTensor, first: int, last: int) -> ModelTensor:
    """Rows ``first..last-1`` as a tensor of their own."""
    shape = (last - first, *tensor.shape[1:])
    if isinstance(tensor, TensorInfo):
        return replace(tensor, shape=shape, offset=tensor.offset + first * tensor.row_bytes)
    return replace(tensor, shape=shape, rows=lambda start, stop: tensor.rows(first + start, first + stop))


def rows_of(tensor: ModelTensor, start: int, stop: int) -> Tensor:
    """Rows ``start..stop-1`` of a tensor, read or computed."""
    from ffn_fusion.checkpoint.reader import read_rows

    return tensor.rows(start, stop) if isinstance(tensor, ComputedTensor) else read_rows(tensor, start, stop)


def sources_of(tensor: ModelTensor) -> tuple[TensorInfo, ...]:
    """The stored tensors that one of the model's is made of."""
    return tensor.sources if isinstance(tensor, ComputedTensor) else (tensor,)
