"""Rotary positions in a GGUF file: the order of Q's and K's rows, and how their scaling is said.

Within a head of d channels, Hugging Face puts the two channels that rotate together half a head apart (row j d/2 + i),
GGUF side by side (row 2 i + j).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ffn_fusion.errors import CheckError, CheckpointError
from ffn_fusion.families.fields import whole
from ffn_fusion.families.rotary import Rotary, read_rotary
from ffn_fusion.gguf.file import AGAIN, GgufFile

FREQUENCIES = "rope_freqs.weight"
"""The tensor that says Llama 3's scaling: by what each of the d/2 frequencies is divided."""
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQUENCIES, _LONG, _SHORT)
"""Tensors that belong to rotary positions and not to the weights; the last two are longrope's."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3.x release says; the file holds only the factors that come of it."""
_YARN = {"factor", "original_max_position_embeddings"}
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "finetuned": True}
"""What llama.cpp computes with, whatever a file says."""
_SAFETENSORS = "start from the model's safetensors"


def reorder_heads(
    rows_RB: npt.NDArray[np.uint8], head_dim: int, to: Literal["interleaved", "half-split"]
) -> npt.NDArray[np.uint8]:
    """Rows of whole heads, each as its bytes [R, B], in the rotary order of GGUF (interleaved) or of Hugging Face."""
    had = (2, head_dim // 2) if to == "interleaved" else (head_dim // 2, 2)
    parts = rows_RB.reshape(-1, *had, rows_RB.shape[1])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows_RB.shape)


def llama3_factors(frequencies: Iterable[Any], scaling: Mapping[str, Any]) -> list[float]:
    """By what Llama 3 divides each rotary frequency; computed in the precision of the frequencies.

    With wavelength w = 2 pi / frequency and context c: 1 for w < c / high, ``factor`` for w > c / low, and between them
    1 / ((1 - s) / factor + s) with s = (c / w - low) / (high - low).
    """
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    factor, context = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(float(1 / ((1 - smooth) / factor + smooth)))
    return factors


# ---- written


def rotary(config: Mapping[str, Any]) -> Rotary:
    """The rotary settings of a config, in whichever spelling.

    Raises:
        CheckError: a scaling that llama.cpp computes in another way, or not at all.
    """
    found = read_rotary(config)
    elsewhere = "choose another engine"
    if found.kind not in ("default", "linear", "llama3", "yarn"):
        raise CheckError(f"llama.cpp has no rotary scaling {found.kind!r} for a Llama", elsewhere)
    if found.kind == "yarn":
        factor = float(found.scaling["factor"])
        defaults = {**_YARN_DEFAULTS, "attention_factor": 0.1 * math.log(factor) + 1 if factor > 1 else 1.0}
        for key, value in found.scaling.items():
            if key in _YARN or value is None:
                continue
            if key not in defaults or not math.isclose(float(value), float(defaults[key]), rel_tol=1e-6):
                raise CheckError(f"llama.cpp's YaRN scaling can't be told {key} {value!r}", elsewhere)
    return found


def rotary_metadata(config: Mapping[str, Any]) -> dict[str, int | float | str | list[int]]:
    """What the metadata says of rotary positions, without the architecture's name in front of the keys."""
    found = rotary(config)
    values: dict[str, int | float | str | list[int]] = {"rope.freq_base": found.theta}
    if found.kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": found.kind, "rope.scaling.factor": float(found.scaling["factor"])}
    if found.kind == "yarn":
        key = "original_max_position_embeddings"
        context = whole(config, "max_position_embeddings", 2048)
        values["rope.scaling.original_context_length"] = whole(
            found.scaling if found.scaling.get(key) else config, key, context
        )
    return values


def stored_factors(config: Mapping[str, Any], head_dim: int) -> npt.NDArray[np.float32] | None:
    """The values of ``rope_freqs.weight`` in float32, as llama.cpp's converter computes them; None: no such tensor."""
    found = rotary(config)
    if found.kind != "llama3":
        return None
    import torch

    frequencies = 1.0 / (found.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    return np.array(llama3_factors(frequencies, found.scaling), "<f4")


# ---- read


def read_scaling(gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """``rope_scaling`` of config.json; None where nothing is scaled.

    Raises:
        CheckpointError: a scaling that can't be carried over.
    """
    kind = gguf.setting("rope.scaling.type", "none")
    if FREQUENCIES in gguf.tensors:
        if kind != "none":
            raise CheckpointError(f"{gguf.path}: both {FREQUENCIES} and rope scaling {kind!r}", AGAIN)
        return _read_llama3(gguf, theta, head_dim)
    if _LONG in gguf.tensors and kind in ("none", "longrope"):
        return _read_longrope(gguf, head_dim)
    if kind == "none":
        scale = gguf.number("rope.scale_linear", 1.0)  # how files of 2023 said it
        return None if scale == 1.0 else {"rope_type": "linear", "factor": scale}
    if kind == "linear":
        return {"rope_type": "linear", "factor": gguf.number("rope.scaling.factor")}
    if kind != "yarn":
        raise CheckpointError(f"{gguf.path}: rope scaling {kind!r} can't be carried over", _SAFETENSORS)
    prefix = f"{gguf.architecture}.rope.scaling."
    simple = {prefix + key for key in ("type", "factor", "original_context_length", "finetuned")}
    extra = [key for key in gguf.metadata if key.startswith(prefix) and key not in simple]
    if extra:
        raise CheckpointError(f"{gguf.path}: {extra[0]} can't be carried over", _SAFETENSORS)
    context = gguf.whole("rope.scaling.original_context_length")
    factor = gguf.number("rope.scaling.factor")
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context}


def _read_longrope(gguf: GgufFile, head_dim: int) -> dict[str, Any]:
    """Phi-3's: factors for short and for long contexts, of which a head that is rotated in part has fewer than d/2."""
    rotated = gguf.whole("rope.dimension_count", head_dim)
    short, long = (_factors(gguf, name, rotated).tolist() for name in (_SHORT, _LONG))
    before = gguf.whole("rope.scaling.original_context_length")
    factor = gguf.whole("context_length") / before
    expected = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": [float(f"{value:.7g}") for value in short],
        "long_factor": [float(f"{value:.7g}") for value in long],
        "original_max_position_embeddings": before,
    }
    attention = gguf.number("rope.scaling.attn_factor", expected)
    if not math.isclose(attention, expected, rel_tol=1e-6):
        scaling["attention_factor"] = attention
    return scaling


def _factors(gguf: GgufFile, name: str, rotated: int) -> npt.NDArray[np.float32]:
    """A tensor with a factor for each pair of rotated channels."""
    tensor = gguf.tensors.get(name)
    if tensor is None or tensor.kind_name != "F32" or tensor.shape != (rotated // 2,):
        found = f"{tensor.kind_name} {list(tensor.shape)}" if tensor else "missing"
        raise CheckpointError(f"{gguf.path}: {name} is {found}, not F32 [{rotated // 2}]", AGAIN)
    return tensor.rows(0, rotated // 2).view("<f4").reshape(-1)


def _read_llama3(gguf: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3.x stores by what each rotary frequency is divided; the largest is the scaling's factor."""
    stored = _factors(gguf, FREQUENCIES, head_dim)
    if np.all(stored == 1.0):
        return None
    factor = float(f"{stored.max():.7g}")
    scaling = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    frequencies = (theta ** (-i / head_dim) for i in range(0, head_dim, 2))
    sane = math.isfinite(factor) and factor > 0
    if not sane or not np.allclose(stored, llama3_factors(frequencies, scaling), rtol=1e-4, atol=0.0):
        raise CheckpointError(
            f"{gguf.path}: {FREQUENCIES} isn't Llama 3's rotary scaling; no other can be carried over", _SAFETENSORS
        )
    return scaling
