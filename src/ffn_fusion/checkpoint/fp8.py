"""Matrices in 8-bit floating point with scales: dequantised some rows at a time, as they are read.

    W = W8 * s      s: one number, one a row [R] or [R, 1] (Llama 3.1 405B FP8), or one a block of b rows and c columns
                    [ceil(R / b), ceil(C / c)] (DeepSeek-V3)

The product is computed in float32 and rounded once, to the dtype that the rest of the model has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ffn_fusion.checkpoint.computed import ComputedTensor, ModelTensor
from ffn_fusion.checkpoint.safetensors_file import TensorInfo
from ffn_fusion.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
"""At the end of a scale's name, after its weight's. Weights are multiplied by either, whatever the name says."""
_UNREAD = ("input_scale", "input_scale_ub", "activation_scale", "output_scale", "k_scale", "v_scale", "kv_scale")
"""Scales of activations and caches: what the weights are doesn't depend on them."""


def dequantised(found: Mapping[str, TensorInfo], dtype: str, block: tuple[int, int]) -> dict[str, ModelTensor]:
    """The stored tensors with every scaled 8-bit matrix in ``dtype``, and without scales.

    Args:
        found: by name.
        block: rows and columns that share a scale, where there is one a block.

    Raises:
        CheckpointError: a scale doesn't fit its weight.
    """
    scaled = {
        name: found[name + end]
        for name, info in found.items()
        for end in _SCALES
        if info.dtype in DTYPES and name + end in found
    }
    if not scaled:
        return dict(found)
    gone = {info.name for info in scaled.values()} | {n for n in found if n.rpartition(".")[2] in _UNREAD}
    return {
        name: _dequantised(info, scaled[name], dtype, block) if name in scaled else info
        for name, info in found.items()
        if name not in gone
    }


def _dequantised(weight: TensorInfo, scale: TensorInfo, dtype: str, block: tuple[int, int]) -> ComputedTensor:
    if len(weight.shape) != 2 or scale.shape not in _fitting(weight.shape, block):
        raise CheckpointError(
            f"tensor {scale.name} is {list(scale.shape)}: no scale of {list(weight.shape)} in all, of each row, or of "
            f"blocks of {block[0]} x {block[1]}",
            "correct weight_block_size, or get the checkpoint again",
        )

    def rows(start: int, stop: int) -> Tensor:
        from ffn_fusion.checkpoint.reader import read_rows, torch_dtype

        values = read_rows(weight, start, stop).float()
        return values.mul_(_factors(weight, scale, block, start, stop)).to(torch_dtype(dtype))

    return ComputedTensor(dtype, weight.shape, (weight, scale), rows)


def _fitting(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    rows, columns = shape
    return (), (1,), (1, 1), (rows,), (rows, 1), (-(-rows // block[0]), -(-columns // block[1]))


def _factors(weight: TensorInfo, scale: TensorInfo, block: tuple[int, int], start: int, stop: int) -> Tensor:
    """What rows ``start..stop-1`` are multiplied by: [1, 1], [n, 1] or [n, C]."""
    import torch

    from ffn_fusion.checkpoint.reader import read_rows

    rows, columns = weight.shape
    if math.prod(scale.shape) == 1:
        return read_rows(scale, 0, 1).float().view(1, 1)
    if scale.shape in ((rows,), (rows, 1)):
        return read_rows(scale, start, stop).float().view(-1, 1)
    first = start // block[0]
    found = read_rows(scale, first, -(-stop // block[0])).float()
    by_row = found[torch.arange(start, stop) // block[0] - first]
    return by_row.repeat_interleave(block[1], dim=1)[:, :columns]
