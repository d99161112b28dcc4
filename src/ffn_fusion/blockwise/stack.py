"""A model as a stack of blocks, loaded when they're needed. Shapes: N windows, T tokens, D hidden, V vocabulary.

The blocks are the very modules a child is served with (``modeling``), filled from a checkpoint on disk or from a child
that exists only as a blueprint; so what's measured here is what transformers will compute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import EMBEDDING, FINAL_NORM, LM_HEAD, block_prefix
from ffn_fusion.processes import neighbours
from ffn_fusion.surgery.child_config import child_config

_RESIDENT_SHARE = 0.4  # of the memory that's free: below it, weights stay loaded between uses


class TensorSource(Protocol):
    """Where a stack's weights come from: a ``Checkpoint`` or a ``Child``."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def read(self, name: str) -> Tensor: ...


class Stack:
    """Embedding, blocks and head of a model, for inference.

    Args:
        source: a checkpoint, or a child not built yet.
        dtype: of the computation; weights are converted when they're loaded.
        resident: keep loaded weights. Default: if they fit into a good part of the free memory.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        resident: bool | None = None,
    ) -> None:
        from ffn_fusion.modeling.configuration_decilm import DeciLMConfig

        self.source = source
        self.spec = source.spec
        self.dtype = dtype
        self.device = torch.device(device)
        self.config = DeciLMConfig(**child_config(self.spec, width_multiple=1))
        self.config._attn_implementation = "sdpa"
        self.resident = self._fits() if resident is None else resident
        self._loaded: dict[int, Block] = {}

    def __len__(self) -> int:
        return len(self.spec.blocks)

    def embed(self, ids_NT: Tensor) -> Tensor:
        """[N, T] -> [N, T, D]"""
        return nn.functional.embedding(ids_NT.to(self.device), self._embedding)

    def block(self, i: int) -> Block:
        """Block ``i``, with its weights."""
        if i in self._loaded:
            return self._loaded[i]
        block = Block(self, i)
        if self.resident:
            self._loaded[i] = block
        return block

    def logits(self, x: Tensor) -> Tensor:
        """Last hidden state [..., D] -> [..., V]. Callers slice: the logits of many tokens need much memory."""
        normed: Tensor = self._final_norm(x)
        return nn.functional.linear(normed, self._head)

    def positions(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin for positions 0..tokens-1."""
        at = torch.arange(tokens, device=self.device).unsqueeze(0)
        cos, sin = self._rotary(torch.empty(0, dtype=self.dtype, device=self.device), at)
        return cos, sin

    def load(self, name: str) -> Tensor:
        return self.source.read(name).to(self.device, self.dtype)

    @cached_property
    def _embedding(self) -> Tensor:
        return self.load(EMBEDDING)

    @cached_property
    def _head(self) -> Tensor:
        return self._embedding if self.spec.tied else self.load(LM_HEAD)

    @cached_property
    def _final_norm(self) -> Any:
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        norm = LlamaRMSNorm(self.spec.hidden_size, eps=self.spec.norm_eps)
        norm.weight = nn.Parameter(self.load(FINAL_NORM), requires_grad=False)
        return norm

    @cached_property
    def _rotary(self) -> Any:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        return LlamaRotaryEmbedding(self.config).to(self.device)

    def _fits(self) -> bool:
        sizes = (tensor.shape for tensor in self.source.tensors.values())
        needed = sum(torch.Size(shape).numel() for shape in sizes) * self.dtype.itemsize
        return needed <= _RESIDENT_SHARE * _free_memory(self.device) / neighbours()


def _free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device; on a Linux host that counts the page cache, which gives way."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * neighbours()  # a GPU isn't shared with the other processes
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Block:
    """One block's contributions; a sub-block that isn't there contributes zero."""

    def __init__(self, stack: Stack, i: int) -> None:
        from ffn_fusion.modeling.modeling_decilm import DeciLMDecoderLayer

        with torch.device("meta"):
            layer = DeciLMDecoderLayer(stack.config, i, cache_layer=0)
        prefix = block_prefix(i)
        weights = {
            name.removeprefix(prefix): stack.load(name) for name in stack.source.tensors if name.startswith(prefix)
        }
        layer.load_state_dict(weights, assign=True)
        self._layer = layer.eval().requires_grad_(False)
        self._positions = stack.positions

    @property
    def has_attention(self) -> bool:
        return self._layer.self_attn is not None

    @property
    def has_ffn(self) -> bool:
        return self._layer.mlp is not None

    def attention(self, x: Tensor) -> Tensor:
        """Attn(n1(x)), causal: [N, T, D] -> [N, T, D]."""
        if self._layer.self_attn is None:
            return torch.zeros_like(x)
        out, _ = self._layer.self_attn(
            hidden_states=self._layer.input_layernorm(x),
            position_embeddings=self._positions(x.shape[1]),
            attention_mask=None,
        )
        result: Tensor = out
        return result

    def ffn(self, x: Tensor) -> Tensor:
        """FFN(n2(x)): [N, T, D] -> [N, T, D]."""
        if self._layer.mlp is None:
            return torch.zeros_like(x)
        result: Tensor = self._layer.mlp(self._layer.post_attention_layernorm(x))
        return result
