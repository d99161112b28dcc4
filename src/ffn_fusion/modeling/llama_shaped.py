"""The torch modules that compute a Llama-shaped model one block at a time: those that its children are served with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from ffn_fusion.blueprint import Part
from ffn_fusion.families import ModelSpec, child_family, names_of
from ffn_fusion.modeling.causal import renew_buffers
from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
from ffn_fusion.modeling.modeling_decilm import (
    DeciLMDecoderLayer,
    DeciLMForCausalLM,
    DeciLMLinearMixer,
    DeciLMLinearMLP,
)

Arguments = Callable[[int], tuple[Tensor, Tensor]]


def make_config(spec: ModelSpec) -> DeciLMConfig:
    """The transformers config of a model of these sizes, widths as they are."""
    config = DeciLMConfig(**child_family(spec).write(spec, 1))
    config._attn_implementation = "sdpa"
    return config


class Frame:
    """What stands around the blocks."""

    def __init__(self, spec: ModelSpec, config: DeciLMConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._spec, self._dtype, self._device = spec, dtype, device
        self._rotary = LlamaRotaryEmbedding(config).to(device)

    def embed(self, ids_NT: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """[N, T] -> [N, T, D]"""
        return nn.functional.embedding(ids_NT, weights[names_of(self._spec).embedding])

    def arguments(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin for positions 0..tokens-1."""
        at = torch.arange(tokens, device=self._device).unsqueeze(0)
        cos, sin = self._rotary(torch.empty(0, dtype=self._dtype, device=self._device), at)
        return cos, sin

    def make_norm(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The final norm, of its weights by name."""
        (scale_D,) = weights.values()
        norm: nn.Module = LlamaRMSNorm(self._spec.hidden_size, eps=self._spec.norm_eps)
        norm.weight = nn.Parameter(scale_D, requires_grad=False)
        return norm

    def logits(self, logits: Tensor) -> Tensor:
        """What the head gives, as it is."""
        return logits


class BlockModule:
    """One block's attention and FFN, for inference.

    Args:
        weights: by key of the family's tensors, as ``families.layout.block_tensors`` lists them.
        arguments: number of tokens -> rotary cos and sin.
    """

    def __init__(
        self, spec: ModelSpec, config: DeciLMConfig, block: int, weights: Mapping[str, Tensor], arguments: Arguments
    ) -> None:
        self._layer = make_layer(spec, config, block, weights)
        self._arguments = arguments

    def attention(self, x: Tensor) -> Tensor:
        """Attn(n1(x)), causal: [N, T, D] -> [N, T, D]."""
        out: Tensor
        out, _ = self._layer.self_attn(
            hidden_states=self._layer.input_layernorm(x),
            position_embeddings=self._arguments(x.shape[1]),
            attention_mask=None,
        )
        return out

    def ffn(self, x: Tensor) -> Tensor:
        """FFN(n2(x)): [N, T, D] -> [N, T, D]."""
        out: Tensor = self._layer.mlp(self._layer.post_attention_layernorm(x))
        return out

    def ffn_channels(self, x: Tensor, channels: slice) -> Tensor:
        """Some channels of what the FFN's output matrix reads, computed alone: [N, T, D] -> [N, T, C]."""
        mlp, normed = self._layer.mlp, self._layer.post_attention_layernorm(x)
        if isinstance(mlp, DeciLMLinearMLP):
            return normed[..., channels]
        gated, raised = (
            nn.functional.linear(normed, layer.weight[channels], None if layer.bias is None else layer.bias[channels])
            for layer in (mlp.gate_proj, mlp.up_proj)
        )
        found: Tensor = mlp.act_fn(gated) * raised
        return found

    def normed(self, x: Tensor) -> Tensor:
        """What the FFN's matrices read, n2(x): [N, T, D] -> [N, T, D]."""
        found: Tensor = self._layer.post_attention_layernorm(x)
        return found

    def parameter(self, part: Part, name: str) -> nn.Parameter:
        """A weight of the attention or the FFN by its name in a block."""
        found: nn.Parameter = self._layer.get_parameter(name)
        return found

    def projection(self, part: Part) -> nn.Linear:
        """The matrix that writes to the residual stream: weight [D, F], and a bias [D] where the model has one."""
        sub_block = self._layer.self_attn if part == "attention" else self._layer.mlp
        match sub_block:
            case DeciLMLinearMixer():
                found = sub_block.linear_attn
            case DeciLMLinearMLP():
                found = sub_block.linear_mlp
            case _:
                found = sub_block.o_proj if part == "attention" else sub_block.down_proj
        assert isinstance(found, nn.Linear)
        return found


def make_layer(spec: ModelSpec, config: DeciLMConfig, block: int, weights: Mapping[str, Tensor]) -> Any:
    """A decoder layer of transformers' kind with these weights, by key."""
    with torch.device("meta"):
        layer = DeciLMDecoderLayer(config, block, cache_layer=0)
    inner = child_family(spec).names.inner
    layer.load_state_dict({inner[key]: weight for key, weight in weights.items()}, assign=True)
    return layer.eval().requires_grad_(False)


def make_model(spec: ModelSpec, width_multiple: int, weights: Mapping[str, Tensor], device: str) -> Any:
    """A whole model as ``AutoModelForCausalLM`` gives it, with weights under the names of its family's children."""
    config = DeciLMConfig(**child_family(spec).write(spec, width_multiple))
    with torch.device("meta"):
        model = DeciLMForCausalLM(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    renew_buffers(model, device)
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval()
