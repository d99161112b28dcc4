"""The tensors of a GGUF file to write: how each is stored, and its bytes, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.shards import finite
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import ModelSpec
from ffn_fusion.gguf import qk_norm
from ffn_fusion.gguf.file import BLOCKS, gguf_package
from ffn_fusion.gguf.names import gguf_name, is_rotary
from ffn_fusion.gguf.rotary import FREQUENCIES, reorder_heads, stored_factors

if TYPE_CHECKING:
    import torch

Kind = Literal["F32", "F16", "BF16", "Q8_0"]
KINDS: tuple[Kind, ...] = ("F32", "F16", "BF16", "Q8_0")
"""GGML types that are written here; others are left to llama.cpp's own program."""

_PIECE_BYTES = 8 << 20  # of float32
_SIZES = {name: (values, size) for name, values, size in BLOCKS.values()}


@dataclass(frozen=True)
class GgufOutput:
    """A tensor to write; ``pieces`` yields its bytes in order. ``shape`` is row-major.

    ``fills``: it belongs to a sub-block that the model hasn't got.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]
    fills: bool = False

    @property
    def nbytes(self) -> int:
        values, size = _SIZES[self.kind]
        return math.prod(self.shape) // values * size


def gguf_tensors(checkpoint: Checkpoint, kind: Kind) -> list[GgufOutput]:
    """Every tensor of the file, matrices stored as ``kind``: in the order of a forward pass, what openelm adds last."""
    own = qk_norm.architecture(checkpoint.spec)
    tensors = [_output(checkpoint, name, kind, interleaved=own is None) for name in checkpoint.tensors]
    if own == "openelm":
        tensors = _as_openelm(tensors, checkpoint.spec, kind)
    factors = stored_factors(checkpoint.spec.config, checkpoint.spec.head_dim)
    if factors is None:
        return tensors
    raw = memoryview(factors.data).cast("B")
    return [GgufOutput(FREQUENCIES, "F32", factors.shape, lambda: iter([raw])), *tensors]


def _output(checkpoint: Checkpoint, name: str, kind: Kind, interleaved: bool) -> GgufOutput:
    shape = checkpoint.tensors[name].shape
    stored = _stored_kind(shape, kind)
    head_dim = checkpoint.spec.head_dim if interleaved and is_rotary(name) else None
    return GgufOutput(gguf_name(name), stored, shape, lambda: _pieces(checkpoint, name, stored, head_dim))


def _as_openelm(tensors: list[GgufOutput], spec: ModelSpec, kind: Kind) -> list[GgufOutput]:
    """As ``openelm`` has them: Q, K and V in one matrix, and zeros in the place of sub-blocks that a block lacks."""
    found = {tensor.name: tensor for tensor in tensors}
    for i, block in enumerate(spec.blocks):
        absent: dict[str, tuple[tuple[int, ...], float]] = {}
        if block.attention:
            parts = [found.pop(f"blk.{i}.attn_{key}.weight") for key in "qkv"]
            joined = _stacked(f"blk.{i}.attn_qkv.weight", parts)
            found[joined.name] = joined
        else:
            absent |= qk_norm.attention_of_zeros(spec, i)
        if not block.ffn:
            absent |= qk_norm.ffn_of_zeros(spec, i)
        found |= {name: _constant(name, shape, value, kind) for name, (shape, value) in absent.items()}
    return list(found.values())


def _stacked(name: str, parts: list[GgufOutput]) -> GgufOutput:
    """Matrices with rows of one length as one, each after the one before it."""
    first = parts[0]
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return GgufOutput(name, first.kind, shape, lambda: chain.from_iterable(part.pieces() for part in parts))


def _constant(name: str, shape: tuple[int, ...], value: float, kind: Kind) -> GgufOutput:
    """A tensor of a sub-block that isn't there, with one value everywhere."""
    stored = _stored_kind(shape, kind)

    def pieces() -> Iterator[memoryview]:
        import torch

        yield _encoded(torch.full(shape, value), "F32", stored)

    return GgufOutput(name, stored, shape, pieces, fills=True)


def _stored_kind(shape: tuple[int, ...], kind: Kind) -> Kind:
    """As llama.cpp's converter: vectors in float32, matrices whose rows aren't whole blocks in float16."""
    if len(shape) == 1:
        return "F32"
    return "F16" if shape[-1] % _SIZES[kind][0] else kind


def _pieces(checkpoint: Checkpoint, name: str, kind: Kind, head_dim: int | None) -> Iterator[memoryview]:
    """The tensor's bytes, some whole rows at a time; whole heads, reordered, where ``head_dim`` is given."""
    import torch

    info, file = checkpoint.tensors[name], checkpoint.stored(name)[0].file
    count = info.shape[0]
    unit = head_dim or 1
    step = max(1, _PIECE_BYTES // (4 * math.prod(info.shape[1:]) * unit)) * unit
    for start in range(0, count, step):
        rows = checkpoint.rows(name, start, min(start + step, count))
        if not finite(_bytes(rows.view(torch.uint8)), info.dtype):
            raise CheckpointError(f"{file}: tensor {name} holds NaN or infinity", "get the weights again")
        if head_dim:
            raw = reorder_heads(rows.view(torch.uint8).reshape(len(rows), -1).numpy(), head_dim, "interleaved")
            rows = torch.from_numpy(raw).view(rows.dtype).reshape(rows.shape)
        piece = _encoded(rows, info.dtype, kind)
        if kind == "F16" and info.dtype != "F16" and not finite(piece, "F16"):
            raise CheckpointError(
                f"{file}: tensor {name} has values beyond float16's 65,504",
                "choose --dtype bf16, f32 or q8_0",
            )
        yield piece


def _encoded(rows: torch.Tensor, dtype: str, kind: Kind) -> memoryview:
    """Rows as bytes of a GGML type; what is of that type already stays bit for bit."""
    import torch

    if dtype == kind:
        return _bytes(rows.contiguous().view(torch.uint8))
    values = rows.to(torch.float32).numpy()
    if kind == "F32":
        return memoryview(np.ascontiguousarray(values).data).cast("B")
    gguf = gguf_package("writing GGUF")
    from gguf.quants import quantize

    with np.errstate(over="ignore"):  # beyond float16: refused by name
        stored = quantize(values, gguf.GGMLQuantizationType[kind])
    return memoryview(np.ascontiguousarray(stored).data).cast("B")


def _bytes(raw: torch.Tensor) -> memoryview:
    return memoryview(raw.numpy().data).cast("B")
