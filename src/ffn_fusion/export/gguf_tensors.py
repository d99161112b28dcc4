"""The tensors of a GGUF file: their names, how each is stored, and their bytes, some rows at a time.

Rows of Q and K leave Hugging Face's rotary order for GGUF's: within a head of d channels, Hugging Face puts the two
channels that rotate together half a head apart (row j d/2 + i), GGUF side by side (row 2i + j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ffn_fusion.checkpoint.gguf_file import BLOCKS
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.shards import finite
from ffn_fusion.errors import CheckpointError, MissingExtraError
from ffn_fusion.export.gguf_metadata import rotary
from ffn_fusion.families.layout import EMBEDDING, FINAL_NORM, LM_HEAD

if TYPE_CHECKING:
    import torch

Kind = Literal["F32", "F16", "BF16", "Q8_0"]
KINDS: tuple[Kind, ...] = ("F32", "F16", "BF16", "Q8_0")
"""GGML types that are written here; others are left to llama.cpp's own program."""

_PIECE_BYTES = 8 << 20  # of float32
_SIZES = {name: (values, size) for name, values, size in BLOCKS.values()}
_WHOLE_MODEL = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", LM_HEAD: "output.weight"}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.linear_attn": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class GgufOutput:
    """A tensor to write; ``pieces`` yields its bytes in order. ``shape`` is row-major."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        values, size = _SIZES[self.kind]
        return math.prod(self.shape) // values * size


def gguf_package() -> Any:
    """The gguf package.

    Raises:
        MissingExtraError: it isn't installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError(
            "writing GGUF needs the gguf package, which isn't installed", "pip install 'ffn-fusion[gguf]'"
        ) from error
    return gguf


def gguf_tensors(checkpoint: Checkpoint, kind: Kind) -> list[GgufOutput]:
    """Every tensor of the file, in the order of a forward pass, matrices stored as ``kind``."""
    factors = _rotary_factors(checkpoint)
    return [*factors, *(_output(checkpoint, name, kind) for name in checkpoint.tensors)]


def gguf_name(name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` -> ``blk.3.attn_q.weight``."""
    if name in _WHOLE_MODEL:
        return _WHOLE_MODEL[name]
    _, _, block, *part, suffix = name.split(".")
    return f"blk.{block}.{_BLOCK['.'.join(part)]}.{suffix}"


def _output(checkpoint: Checkpoint, name: str, kind: Kind) -> GgufOutput:
    shape = checkpoint.tensors[name].shape
    stored = _stored_kind(shape, kind)
    return GgufOutput(gguf_name(name), stored, shape, lambda: _pieces(checkpoint, name, stored))


def _stored_kind(shape: tuple[int, ...], kind: Kind) -> Kind:
    """As llama.cpp's converter: vectors in float32, matrices whose rows aren't whole blocks in float16."""
    if len(shape) == 1:
        return "F32"
    return "F16" if shape[-1] % _SIZES[kind][0] else kind


def _pieces(checkpoint: Checkpoint, name: str, kind: Kind) -> Iterator[memoryview]:
    """The tensor's bytes, some whole rows (for Q and K: whole heads) at a time."""
    import torch

    info = checkpoint.tensors[name]
    count = info.shape[0]
    turned = ".q_proj." in name or ".k_proj." in name
    unit = checkpoint.spec.head_dim if turned else 1
    step = max(1, _PIECE_BYTES // (4 * math.prod(info.shape[1:]) * unit)) * unit
    for start in range(0, count, step):
        rows = checkpoint.rows(name, start, min(start + step, count))
        if not finite(_bytes(rows.view(torch.uint8)), info.dtype):
            raise CheckpointError(f"{info.file}: tensor {name} holds NaN or infinity", "get the weights again")
        if turned:
            rows = interleaved(rows, checkpoint.spec.head_dim)
        piece = _encoded(rows, info.dtype, kind)
        if kind == "F16" and info.dtype != "F16" and not finite(piece, "F16"):
            raise CheckpointError(
                f"{info.file}: tensor {name} has values beyond float16's 65,504", "choose --dtype bf16, f32 or q8_0"
            )
        yield piece


def interleaved(rows_RD: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of whole heads from half-split to interleaved rotary order: row j d/2 + i becomes row 2i + j."""
    halves = rows_RD.reshape(-1, 2, head_dim // 2, *rows_RD.shape[1:])
    return halves.transpose(1, 2).reshape(rows_RD.shape).contiguous()


def _encoded(rows: torch.Tensor, dtype: str, kind: Kind) -> memoryview:
    """Rows as bytes of a GGML type; what is of that type already stays bit for bit."""
    import torch

    if dtype == kind:
        return _bytes(rows.contiguous().view(torch.uint8))
    values = rows.to(torch.float32).numpy()
    if kind == "F32":
        return memoryview(np.ascontiguousarray(values).data).cast("B")
    gguf = gguf_package()
    from gguf.quants import quantize

    with np.errstate(over="ignore"):  # beyond float16: refused by name
        stored = quantize(values, gguf.GGMLQuantizationType[kind])
    return memoryview(np.ascontiguousarray(stored).data).cast("B")


def _bytes(raw: torch.Tensor) -> memoryview:
    return memoryview(raw.numpy().data).cast("B")


def _rotary_factors(checkpoint: Checkpoint) -> list[GgufOutput]:
    """Llama 3's rotary scaling: by what each of the d/2 frequencies is divided; in float32, as the converter."""
    import torch

    spec = checkpoint.spec
    theta, scaling = rotary(spec.config)
    if scaling.get("rope_type") != "llama3":
        return []
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    factor, context = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    factors = []
    for frequency in 1.0 / (theta ** (torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim)):
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(float(1 / ((1 - smooth) / factor + smooth)))
    raw = memoryview(np.array(factors, "<f4").data).cast("B")
    return [GgufOutput("rope_freqs.weight", "F32", (len(factors),), lambda: iter([raw]))]
