"""A model as a stack of blocks, loaded when they're needed. Shapes: N windows, T tokens, D hidden, V vocabulary.

The blocks are the very modules a child is served with (``modeling``), filled from a checkpoint on disk or from a child
that exists only as a blueprint; so what's measured here is what transformers will compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ffn_fusion.blockwise.memory import free_memory
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

    def forget_embedding(self) -> None:
        """Where weights are streamed, the embedding is done with once the tokens are embedded; not if it's the head."""
        if not self.resident and not self.spec.tied:
            self.__dict__.pop("_embedding", None)

    def forget(self) -> None:
        """Give the memory of all weights back; they're read again when they're needed."""
        self._loaded.clear()
        for name in ("_embedding", "_head"):
            self.__dict__.pop(name, None)

    def block(self, i: int) -> Block:
        """Block ``i``, with its weights."""
        block = self._loaded.get(i) or Block(self, i)
        if self.resident:
            self._loaded[i] = block
        else:
            self._loaded.pop(i, None)
        return block

    def preload(self, i: int) -> Block:
        """Block ``i``, which stays loaded until it's asked for the next time."""
        self._loaded[i] = self.block(i)
        return self._loaded[i]

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
        """A tensor on the device, in the dtype of the computation."""
        tensor = self.source.read(name)
        if self.device.type != "cuda":
            return tensor.to(self.device, self.dtype)
        # From pinned memory and on a stream of its own, so that the copy runs beside the computation.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            loaded = tensor.pin_memory().to(self.device, non_blocking=True).to(self.dtype)
        side.synchronize()
        loaded.record_stream(torch.cuda.default_stream(self.device))
        return loaded

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
        needed = parameters(self.source) * self.dtype.itemsize
        return needed <= _RESIDENT_SHARE * free_memory(self.device) / neighbours()


def parameters(source: TensorSource) -> int:
    """Elements of all weights."""
    return sum(prod(tensor.shape) for tensor in source.tensors.values())


@dataclass(frozen=True)
class Contributions:
    """What a block adds to a state: h = attention + ffn, each [N, T, D]."""

    attention: Tensor
    ffn: Tensor

    @property
    def block(self) -> Tensor:
        return self.attention + self.ffn


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

    def contributions(self, x: Tensor) -> Contributions:
        """What the block adds to x: [N, T, D] -> twice [N, T, D]."""
        attention = self.attention(x)
        return Contributions(attention, self.ffn(x + attention))

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

    def inner_and_outer(self, part: Literal["attention", "ffn"], x: Tensor) -> tuple[Tensor, Tensor]:
        """What a sub-block's output projection reads, and what it gives: [N, T, D] -> [N, T, F], [N, T, D].

        F is the FFN's width, or the attention's heads times their size.
        """
        caught: list[Tensor] = []
        hook = self.projection(part).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            outer = self.attention(x) if part == "attention" else self.ffn(x)
        finally:
            hook.remove()
        return caught[0], outer

    def inner(self, part: Literal["attention", "ffn"], x: Tensor, channels: slice) -> Tensor:
        """Return some channels of what a sub-block's output projection reads: [N, T, D] -> [N, T, C].

        Of a gated FFN, only these are computed.
        """
        if part == "attention":
            return self.inner_and_outer(part, x)[0][..., channels]
        mlp, normed = self._layer.mlp, self._layer.post_attention_layernorm(x)
        gated, raised = (
            nn.functional.linear(normed, layer.weight[channels], None if layer.bias is None else layer.bias[channels])
            for layer in (mlp.gate_proj, mlp.up_proj)
        )
        found: Tensor = mlp.act_fn(gated) * raised
        return found

    def projection(self, part: Literal["attention", "ffn"]) -> nn.Linear:
        """The output projection itself: weight [D, F], and a bias [D] where the model has one."""
        found = self._layer.self_attn.o_proj if part == "attention" else self._layer.mlp.down_proj
        assert isinstance(found, nn.Linear)
        return found


class ReadAhead:
    """Hands out blocks in order, and reads the next one while the last one computes.

    At most two blocks are in memory: the caller lets go of one before it takes another.
    """

    def __init__(self, stack: Stack, order: Sequence[int]) -> None:
        self._stack = stack
        self._order = list(order)
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._next: Future[Block] | None = None
        self._read_next()

    def take(self, i: int) -> Block:
        """Block i, the next in order."""
        assert self._next is not None
        block = self._next.result()
        self._read_next()
        return block

    def _read_next(self) -> None:
        if self._order:
            self._next = self._reader.submit(self._stack.block, self._order.pop(0))
        else:
            self._next = None
            self._reader.shutdown(wait=False)
