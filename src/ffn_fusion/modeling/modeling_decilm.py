# SPDX-License-Identifier: Apache-2.0
"""A Nemotron-NAS (DeciLM) model on transformers' own Llama classes: each block has what ``block_configs`` says.

This file and the two beside it travel inside every child checkpoint; they need nothing but torch and transformers.
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
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRotaryEmbedding,
)

from .configuration_decilm import DeciLMConfig
from .layers_decilm import FastRMSNorm, SlicedMLP


class DeciLMAttention(LlamaAttention):
    """Llama's attention with the number of KV heads of its block."""

    def __init__(self, config: DeciLMConfig, kv_heads: int, cache_layer: int) -> None:
        sizes = copy.copy(config)
        sizes.num_key_value_heads = kv_heads
        qkv_bias = getattr(config, "qkv_bias", False)
        sizes.attention_bias = config.attention_bias or qkv_bias
        super().__init__(sizes, cache_layer)
        if qkv_bias and not config.attention_bias:
            self.o_proj: nn.Module = nn.Linear(sizes.num_attention_heads * self.head_dim, sizes.hidden_size, bias=False)
        self.config = config  # the model's own, so that set_attn_implementation reaches this block


class DeciLMMLP(SlicedMLP):
    """Llama's gated FFN with the width of its block; a fused FFN is just a wide one."""

    def __init__(self, config: DeciLMConfig, width: int) -> None:
        sizes = copy.copy(config)
        sizes.intermediate_size = width
        super().__init__(sizes)
        self.config = config


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
            self.input_layernorm = FastRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if self.mlp is not None:
            self.post_attention_layernorm = FastRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

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
        self.norm = FastRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
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


__all__ = ["DeciLMForCausalLM", "DeciLMModel", "DeciLMPreTrainedModel"]
