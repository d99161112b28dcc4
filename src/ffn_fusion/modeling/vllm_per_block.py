"""vLLM's class for children in their family's own form: vLLM's own model of that family, with blocks that differ.

vLLM imports this file, through the entry point that ``registration`` is. Nothing is computed here but what an absent
sub-block leaves to do: the decoder layers, their kernels and their tensor parallelism are vLLM's.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
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

from ffn_fusion.modeling.modeling_per_block import SKIPPED, blocks_of


class PerBlockForCausalLM(LlamaForCausalLM):
    """Makes models of the family that a config names: what comes out is an instance of vLLM's class for that family.

    vLLM asks the class what it can do before it makes a model; Llama's answers hold for all of these families.
    """

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        """A model for ``vllm_config``. Raises: ValueError: vLLM has no class of its own for the family."""
        return _model_class(vllm_config.model_config.hf_config.base_model_type)(vllm_config=vllm_config, prefix=prefix)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        raise NotImplementedError  # what __new__ returns is of another class


class _PerBlock(nn.Module):
    """What is added to a family's class for causal language models."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        super().__init__(vllm_config=_without_blocks(vllm_config), prefix=prefix)
        path, holder, name = _layers_of(self)
        holder.start_layer, holder.end_layer, layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: _make_block(type(self), vllm_config, prefix),
            prefix=maybe_prefix(prefix, path),
        )
        setattr(holder, name, layers)


@lru_cache(None)
def _model_class(base_model_type: str) -> Any:
    """vLLM's own class for a family, with blocks that differ. Raises: ValueError: it has none."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(base_model_type)
    base = ModelRegistry.models[name].load_model_cls() if name in ModelRegistry.models else None
    if base is None or not _layer_class(base):
        raise ValueError(f"vLLM has no class of its own for {base_model_type}")
    return type(f"PerBlock{base.__name__}", (_PerBlock, base), {"__module__": __name__})


def _layer_class(model: type) -> Any:
    """The class of decoder layers that a model's module defines, or that of the class which it extends."""
    for cls in model.__mro__:
        for name, value in vars(sys.modules[cls.__module__]).items():
            own = isinstance(value, type) and value.__module__ == cls.__module__
            if own and name.endswith(("DecoderLayer", "Block")) and issubclass(value, nn.Module):
                return value
    return None


def _without_blocks(vllm_config: VllmConfig) -> Any:
    """The same settings for a model without any block."""
    outer, inner = copy.copy(vllm_config), copy.copy(vllm_config.model_config)
    inner.hf_config = copy.copy(inner.hf_config)
    inner.hf_config.num_hidden_layers = 0
    outer.model_config = inner
    return outer


def _layers_of(model: nn.Module) -> tuple[str, Any, str]:
    """Path of the list of decoder layers, the module that holds it, and its name there."""
    wanted = blocks_of(model)
    path = next(path for path, module in model.named_modules() if module is wanted)
    holder, _, name = path.rpartition(".")
    return path, model.get_submodule(holder), name


def _make_block(model: type, vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """A decoder layer of the family's own class with the sizes of this block, without the sub-blocks it skips."""
    config, number = vllm_config.model_config.hf_config, int(prefix.rsplit(".", 1)[1])
    sizes = config.per_layer_config[number]
    layer_class = _layer_class(model.__mro__[2])
    given = {
        "vllm_config": vllm_config,
        "config": sizes,
        "cache_config": vllm_config.cache_config,
        "quant_config": vllm_config.quant_config,
        "prefix": prefix,
    }
    known = inspect.signature(layer_class.__init__).parameters
    layer: nn.Module = layer_class(**{name: value for name, value in given.items() if name in known})
    adds_itself = "residual" not in inspect.signature(layer_class.forward).parameters
    for part, modules in config.sub_blocks.items():
        if SKIPPED[part] in getattr(sizes, "skip", ()):
            first = number == 0 and part == "attention"
            for name in (*modules["around"], modules["computes"]):
                if getattr(layer, name, None) is not None:
                    computes = name == modules["computes"]
                    gives_nothing = computes if adds_itself else first and not computes
                    setattr(layer, name, Absent(isinstance(getattr(layer, name), LinearBase), gives_nothing))
            for name in _caches(vllm_config, f"{prefix}.{modules['computes']}."):
                del vllm_config.compilation_config.static_forward_context[name]
    return layer


def _caches(vllm_config: VllmConfig, prefix: str) -> Iterator[str]:
    """Names of the attentions under ``prefix`` that vLLM would keep a cache for."""
    yield from [name for name in vllm_config.compilation_config.static_forward_context if name.startswith(prefix)]


class Absent(nn.Module):
    """In place of a module of a sub-block that isn't there.

    Layers of vLLM hand on a state in two parts whose sum it is, and norms add them up: what is absent hands on both
    as they are. Only at the model's start there is one part, which is the state: nothing has to be added to it. In
    families whose layers add up by themselves, it's always so.

    Args:
        linear: vLLM's linear layers give a pair, of which the second is a bias that wasn't added.
        nothing: a state given alone becomes zeros.
    """

    def __init__(self, linear: bool, nothing: bool) -> None:
        super().__init__()
        self.linear, self.nothing = linear, nothing

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Hand on the state: in one part, in two (the second after it), or with its position."""
        state = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if len(args) == 2:
            return args
        if self.nothing:
            state = torch.zeros_like(state)
        return (state, None) if self.linear else state
