# SPDX-License-Identifier: Apache-2.0
"""A Nemotron-NAS (DeciLM) model on transformers' own Llama classes: each block has what ``block_configs`` says.

This file is self-contained (torch, transformers and the config beside it): it travels inside every child checkpoint.
Attention-free blocks own no KV cache: attentions are numbered among themselves and use those numbers as cache layers.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from .configuration_decilm import DeciLMConfig

SLICE = 1024
"""FFN channels that a CPU makes at once in float32: MKL is slower where a product of a few rows is wider."""
SLICED_ROWS = range(2, 257)
"""Rows (tokens of all sequences) where that pays."""


class DeciLMRMSNorm(LlamaRMSNorm):
    """Llama's norm in fewer steps, without gradients. One kernel where there is one: float32, and GPUs.

    The same bits as Llama's, but on a GPU below float32: rounded once there, where Llama's is twice.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight, dtype = self.weight, hidden_states.dtype
        if torch.is_grad_enabled() or weight.dtype is not dtype:
            return super().forward(hidden_states)
        if dtype is torch.float32 or hidden_states.is_cuda:
            return nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        states = hidden_states.float()
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return weight * states.to(dtype)


class DeciLMAttention(LlamaAttention):
    """Llama's attention with the number of KV heads of its block."""

    def __init__(self, config: DeciLMConfig, kv_heads: int, cache_layer: int) -> None:
        sizes = copy.copy(config)
        sizes.num_key_value_heads = kv_heads
        super().__init__(sizes, cache_layer)
        self.config = config  # the model's own, so that set_attn_implementation reaches this block


def _is_plain(linear: nn.Module) -> bool:
    """A matrix product that nobody listens to."""
    return type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks


class DeciLMMLP(LlamaMLP):
    """Llama's gated FFN with the width of its block; a fused FFN is just a wide one.

    Packed (``pack``), gate and up lie side by side in memory and are one matrix product: the two weights stay
    parameters under their names, as views of its halves. Gradients, adapters, quantised or sharded weights take the
    plain path.
    """

    def __init__(self, config: DeciLMConfig, width: int) -> None:
        sizes = copy.copy(config)
        sizes.intermediate_size = width
        super().__init__(sizes)
        self.config = config
        self._packed: tuple[torch.Tensor, ...] | None = None  # gate's and up's weight, and the two as one [2F, D]

    def pack(self) -> bool:
        """Lay gate and up side by side; whether that's possible. The weights are copied once, and not kept twice."""
        self._packed = None
        for linear in (self.gate_proj, self.up_proj):
            # accelerate and tensor parallelism put a forward of their own into a layer
            if not _is_plain(linear) or linear.bias is not None or "forward" in linear.__dict__:
                return False
            if type(linear.weight) is not nn.Parameter or linear.weight.is_meta:
                return False
        gate, up = self.gate_proj.weight, self.up_proj.weight
        both = torch.cat((gate.data, up.data))
        gate.data, up.data = both.chunk(2)
        self._packed = gate, up, both
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, packed = self.gate_proj, self.up_proj, self._packed
        if not torch.is_grad_enabled() and _is_plain(gate) and _is_plain(up):
            if self._in_slices(x):
                return self.down_proj(self._gated_in_slices(x))
            # Adapters and offloading bring weights of their own.
            if packed is not None and gate.weight is packed[0] and up.weight is packed[1]:
                gated, raised = nn.functional.linear(x, packed[2]).chunk(2, dim=-1)
                return self.down_proj(self.act_fn(gated) * raised)
        return self.down_proj(self.act_fn(gate(x)) * up(x))

    def _in_slices(self, x: torch.Tensor) -> bool:
        gate, up = self.gate_proj.weight, self.up_proj.weight
        return (
            gate.shape[0] >= 2 * SLICE
            and x.dtype is torch.float32
            and x.device.type == gate.device.type == "cpu"
            and gate.dtype is up.dtype is torch.float32
            and not torch.compiler.is_compiling()
            and self.gate_proj.bias is None
            and x.numel() // x.shape[-1] in SLICED_ROWS
            and type(gate) is type(up) is nn.Parameter
        )

    def _gated_in_slices(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate x) * up x, a few channels after the other: the same products, whose results stay in the cache."""
        at_once = SLICE * torch.get_num_threads()
        gates, ups = self.gate_proj.weight, self.up_proj.weight
        middle = x.new_empty(*x.shape[:-1], len(gates))
        for start in range(0, len(gates), at_once):
            part = slice(start, start + at_once)
            gated, raised = nn.functional.linear(x, gates[part]), nn.functional.linear(x, ups[part])
            torch.mul(self.act_fn(gated), raised, out=middle[..., part])
        return middle

    def _apply(self, fn: Any, recurse: bool = True) -> "DeciLMMLP":
        packed, self._packed = self._packed, None  # moved or converted, the two are apart again
        super()._apply(fn, recurse)
        if packed is not None:
            self.pack()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # a copy's weights are apart


class DeciLMLinearMixer(nn.Module):
    """One matrix in place of an attention: every token attends to itself.

    No "Attention" in its name: transformers would look for an attention interface in this file, find none and refuse
    to change the attention implementation of the model.
    """

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return self.linear_attn(hidden_states), None


class DeciLMLinearMLP(nn.Module):
    """One matrix in place of an FFN."""

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_mlp(hidden_states)


class DeciLMDecoderLayer(LlamaDecoderLayer):
    """x + Attn(n1(x)), then + FFN(n2(.)); a sub-block that isn't there leaves x as it is."""

    def __init__(self, config: DeciLMConfig, block: int, cache_layer: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        attention, ffn = config.block_configs[block]["attention"], config.block_configs[block]["ffn"]
        self.self_attn: nn.Module | None = None
        self.mlp: nn.Module | None = None
        kv_heads, width = config.kv_heads(block), config.ffn_width(block)
        if kv_heads is not None:
            self.self_attn = DeciLMAttention(config, kv_heads, cache_layer)
        elif attention.get("replace_with_linear"):
            self.self_attn = DeciLMLinearMixer(config)
        if width is not None:
            self.mlp = DeciLMMLP(config, width)
        elif ffn.get("replace_with_linear"):
            self.mlp = DeciLMLinearMLP(config)
        if self.self_attn is not None:
            self.input_layernorm = DeciLMRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if self.mlp is not None:
            self.post_attention_layernorm = DeciLMRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attention, ffn = self.self_attn, self.mlp
        if attention is not None:
            attended, _ = attention(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended
        if ffn is not None:
            hidden_states = hidden_states + ffn(self.post_attention_layernorm(hidden_states))
        return hidden_states


class DeciLMPreTrainedModel(LlamaPreTrainedModel):
    config: DeciLMConfig
    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": DeciLMDecoderLayer,
        "attentions": DeciLMAttention,
    }

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', and in tensor parallel a check of every block's heads, which differ here."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        processes = getattr(model, "tp_size", None) or 1
        for block in range(model.config.num_hidden_layers):
            kv_heads = model.config.kv_heads(block)
            if kv_heads is not None and kv_heads % processes:
                raise ValueError(f"block {block}: {kv_heads} KV heads can't be divided by {processes} processes")
        return loaded


class DeciLMModel(DeciLMPreTrainedModel, LlamaModel):
    def __init__(self, config: DeciLMConfig) -> None:
        DeciLMPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers, attentions = [], 0
        for block in range(config.num_hidden_layers):
            layers.append(DeciLMDecoderLayer(config, block, attentions))
            attentions += config.kv_heads(block) is not None
        self.layers = nn.ModuleList(layers)
        self.norm = DeciLMRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class DeciLMForCausalLM(DeciLMPreTrainedModel, LlamaForCausalLM):
    def __init__(self, config: DeciLMConfig) -> None:
        DeciLMPreTrainedModel.__init__(self, config)
        self.model = DeciLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def pack_ffns(self) -> int:
        """Make gate and up of every FFN one matrix product, for inference; how many FFNs took it.

        Call it once the model lies where it'll run. Names, state dict and what ``save_pretrained`` writes stay.
        """
        return sum(module.pack() for module in self.modules() if isinstance(module, DeciLMMLP))


__all__ = ["DeciLMForCausalLM", "DeciLMModel", "DeciLMPreTrainedModel"]
