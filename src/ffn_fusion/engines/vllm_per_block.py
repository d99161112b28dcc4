"""vLLM's class for children in their family's own form: vLLM's own model of that family, with blocks that differ.

vLLM alone imports this file; ``registration`` tells it to. Decoder layers, their kernels and
their tensor parallelism are vLLM's; here they get their sizes, and what a block hasn't got is taken out.
"""

from __future__ import annotations

import copy
import inspect
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.utils import make_layers, maybe_prefix

from ffn_fusion.families import read_spec
from ffn_fusion.modeling.modeling_per_block import SKIPPED, blocks_of
from ffn_fusion.portability.rules import problems


class PerBlockForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """Makes models of the family that a config names: what comes out is an instance of vLLM's class for that family.

    vLLM asks the class what it can do before it makes a model; Llama's answers hold for all of these families.
    """

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        """Make a model. Raises: ValueError: vLLM can't run it, or would compute something else."""
        config = vllm_config.model_config.hf_config
        if found := problems(read_spec(config.to_dict()), "vllm"):
            raise ValueError(f"a {config.base_model_type} with blocks that differ: vLLM {found[0].reason}")
        # vLLM's Qwen2 takes heads to be hidden_size / num_attention_heads wide; its Llama has Qwen2's biases as well.
        family = "llama" if config.base_model_type == "qwen2" else config.base_model_type
        return _model_class(family)(vllm_config=vllm_config, prefix=prefix)


class _PerBlock(nn.Module):
    """What is added to a family's class for causal language models."""

    layer_class: type[nn.Module]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=_without_blocks(vllm_config), prefix=prefix)
        empty = blocks_of(self)
        path = next(path for path, module in self.named_modules() if module is empty)
        parent, _, name = path.rpartition(".")
        holder: Any = self.get_submodule(parent)
        holder.start_layer, holder.end_layer, layers = make_layers(
            vllm_config.model_config.hf_config.num_hidden_layers,
            lambda prefix: _make_block(self.layer_class, vllm_config, prefix),
            prefix=maybe_prefix(prefix, path),
        )
        setattr(holder, name, layers)


@lru_cache(None)
def _model_class(base_model_type: str) -> Any:
    """vLLM's own class for a family, with blocks that differ."""
    base = ModelRegistry.models[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[base_model_type]].load_model_cls()
    own = {"__module__": __name__, "layer_class": _layer_class(base)}
    return type(f"PerBlock{base.__name__}", (_PerBlock, base), own)


def _layer_class(model: type) -> Any:
    """The class of decoder layers that a model's module defines."""
    return next(
        value
        for name, value in vars(sys.modules[model.__module__]).items()
        if name.endswith(("DecoderLayer", "Block")) and value.__module__ == model.__module__
    )


def _without_blocks(vllm_config: VllmConfig) -> Any:
    """The same settings for a model without any block."""
    outer, inner = copy.copy(vllm_config), copy.copy(vllm_config.model_config)
    inner.hf_config = copy.copy(inner.hf_config)
    inner.hf_config.num_hidden_layers = 0
    outer.model_config = inner
    return outer


def _make_block(layer_class: Any, vllm_config: VllmConfig, prefix: str) -> Any:
    """A decoder layer of the family's own class with the sizes of this block, without the sub-blocks it skips."""
    config, number = vllm_config.model_config.hf_config, int(prefix.rsplit(".", 1)[1])
    sizes = config.per_layer_config[number]
    layer = _make_layer(layer_class, vllm_config, sizes, prefix)
    adds_by_itself = "residual" not in inspect.signature(layer.forward).parameters
    for part, modules in config.sub_blocks.items():
        if SKIPPED[part] not in getattr(sizes, "skip", ()):
            continue
        computes, norms = modules["computes"], modules["around"]
        starts = number == 0 and part == "attention" and not adds_by_itself
        for name in (*norms, computes):
            linear = isinstance(getattr(layer, name), LinearBase)
            setattr(layer, name, Absent(linear, nothing=adds_by_itself if name == computes else starts))
        caches = vllm_config.compilation_config.static_forward_context  # attentions by name; each would get a cache
        for name in [name for name in caches if name.startswith(f"{prefix}.{computes}.")]:
            del caches[name]
    return layer


def _make_layer(layer_class: Any, vllm_config: VllmConfig, sizes: Any, prefix: str) -> Any:
    """A decoder layer of these sizes; some of vLLM's classes take all settings at once."""
    if "vllm_config" in inspect.signature(layer_class).parameters:
        return layer_class(vllm_config, prefix=prefix, config=sizes)
    return layer_class(sizes, vllm_config.cache_config, vllm_config.quant_config, prefix=prefix)


class Absent(nn.Module):
    """In place of a module of a sub-block that isn't there: it hands on what it is given.

    Where vLLM's layers hand on the state in two parts, whose sum it is, norms add them up and what computes gives one
    of them: nothing is added as long as both stay as they are. The first norm of a model is given one part, the state
    itself, which the layer keeps as the other part: it has to give zeros. So has what computes where a layer adds its
    result to the state by itself.

    Args:
        linear: vLLM's linear layers give a pair, of which the second is a bias that wasn't added.
        nothing: zeros are given for a state in one part.
    """

    def __init__(self, linear: bool, nothing: bool) -> None:
        super().__init__()
        self.linear, self.nothing = linear, nothing

    def forward(self, *parts: torch.Tensor, **named: torch.Tensor) -> Any:
        """Hand on both parts of a state, or the one: given by its place, or by name beside the positions."""
        if len(parts) == 2:
            return parts
        state = named["hidden_states"] if named else parts[0]
        state = torch.zeros_like(state) if self.nothing else state
        return (state, None) if self.linear else state
