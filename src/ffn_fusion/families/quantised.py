"""What config.json says of quantised weights: 8-bit floating point with scales can be read, the rest is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.errors import FamilyError

BLOCK = (128, 128)
"""Rows and columns that share a scale, where nothing else is said: DeepSeek's."""
UNQUANTISE = "start from the unquantised model and quantise the child"


def unquantised(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model that the weights are after dequantising them.

    Raises:
        FamilyError: they are quantised in a form that isn't read.
    """
    said = config.get("quantization_config")
    if isinstance(said, Mapping) and not _is_fp8(said):
        method = said.get("quant_method", "no method named")
        raise FamilyError(f"the weights are quantised (quantization_config in config.json: {method})", UNQUANTISE)
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _is_fp8(said: Mapping[str, Any]) -> bool:
    """Whether weights are stored as F8_E4M3 or F8_E5M2 with scales to be multiplied by."""
    method, algorithm = said.get("quant_method"), said.get("quant_algo")
    return (
        method in ("fp8", "fbgemm_fp8")
        or (method == "compressed-tensors" and said.get("format") in ("float-quantized", "naive-quantized"))
        or (method == "modelopt" and algorithm == "FP8")
    )


def scale_block(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of a weight that share a scale, in weights with a scale for each block."""
    said = config.get("quantization_config")
    size = said.get("weight_block_size") if isinstance(said, Mapping) else None
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    return BLOCK
