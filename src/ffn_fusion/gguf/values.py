"""The numbers that a tensor of a GGUF file stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.errors import CheckpointError
from ffn_fusion.gguf.file import GgufTensor, gguf_package

FLOATS = ("F32", "F16", "BF16")
"""GGML types that are stored as they are; all others are quantised."""


def values_of(tensor: GgufTensor, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return the values of some rows: the bytes themselves of stored floats, float32 of anything quantised.

    Raises:
        CheckpointError: a type that can't be dequantised. MissingExtraError: the gguf package is needed.
    """
    if tensor.kind_name in FLOATS:
        return raw
    gguf = gguf_package(f"{tensor.file}: reading its {tensor.kind_name} weights")
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are refused by name, when they are written
            values: npt.NDArray[np.float32] = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(tensor.kind))
    except (NotImplementedError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} ({tensor.kind_name}) can't be dequantised ({error})",
            "take another quantisation of the model",
        ) from error
    return np.ascontiguousarray(values, dtype="<f4")


def all_zero(tensor: GgufTensor) -> bool:
    """Return whether every value of a small tensor is zero.

    Raises:
        CheckpointError, MissingExtraError: as ``values_of``.
    """
    values = values_of(tensor, tensor.rows(0, tensor.shape[0]))
    integers = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}.get(tensor.kind_name)
    if integers is None:
        return not values.any()
    bits = values.view(integers)
    return not (bits << 1).any()  # without the sign: minus zero is zero
