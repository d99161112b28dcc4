# SPDX-License-Identifier: Apache-2.0
"""A model of any family of transformers whose blocks differ: the family's own classes, a config for each block.

This file and the one beside it travel inside a child checkpoint; they need nothing but torch and transformers.
"""

import copy
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .configuration_per_block import PerBlockConfig, config_class

SKIPPED = {"attention": "attention", "ffn": "mlp"}
"""What ``skip`` calls a sub-block that a block hasn't got."""


class Nothing(nn.Module):
    """In place of a sub-block that isn't there: it adds nothing to the state."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        zero = hidden_states.new_zeros(())
        return (zero, None) if self.attention else zero


def cache_layers(config: Any) -> list[int | None]:
    """For each block, the layer of the cache that its attention writes to; None: it has no attention.

    Attentions of a type (full, sliding) take that type's layers in order, so that the first layer of the cache, which
    is asked how many tokens were seen, is always one that an attention writes to.
    """
    count = config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["all"] * count
    free = {kind: iter([i for i in range(count) if types[i] == kind]) for kind in types}
    skips = [SKIPPED["attention"] in getattr(own, "skip", ()) for own in config.per_layer_config]
    return [None if skip else next(free[kind]) for kind, skip in zip(types, skips, strict=True)]


def make_block(config: Any, block: int, cache_layer: int | None = None, leave_out: tuple[str, ...] = ()) -> nn.Module:
    """A decoder layer of the family's own class with the sizes of this block, without the sub-blocks it skips.

    Args:
        cache_layer: the layer of the cache that its attention writes to, where there is a cache.
        leave_out: sub-blocks to leave out beside those.
    """
    sizes = config.per_layer_config[block]
    family = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[config.base_model_type]]
    layer_class = getattr(import_module(family.__module__), family._no_split_modules[0])
    layer: nn.Module = layer_class(sizes, block)
    for module in layer.modules():
        if getattr(module, "config", None) is sizes:
            module.config = config  # the model's own, so that set_attn_implementation reaches this block
        if hasattr(module, "layer_idx"):
            setattr(module, "layer_idx", cache_layer)  # noqa: B010
    for part, modules in config.sub_blocks.items():
        if SKIPPED[part] in getattr(sizes, "skip", ()) or part in leave_out:
            setattr(layer, modules["computes"], Nothing(part == "attention"))
            for name in modules["around"]:
                setattr(layer, name, nn.Identity())
    return layer


def blocks_of(model: Any) -> nn.ModuleList:
    """The list of decoder layers: the one list that a model of these families has."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


class _PerBlock:
    """What ``PerBlockForCausalLM`` adds to a family's class for causal language models."""

    def __init__(self, config: Any) -> None:
        one = copy.copy(config.per_layer_config[0])
        one.num_hidden_layers = 1
        super().__init__(one)
        config._attn_implementation = one._attn_implementation  # decided there
        for module in self.modules():  # type: ignore[attr-defined]
            if getattr(module, "config", None) is one:
                module.config = config
        layers = blocks_of(self)
        del layers[0]
        layers.extend(make_block(config, block, layer) for block, layer in enumerate(cache_layers(config)))
        self.post_init()  # type: ignore[attr-defined]


class PerBlockForCausalLM(PreTrainedModel):
    """Makes models of the family that a config names: what comes out is an instance of that family's own class."""

    config: PerBlockConfig
    config_class = PerBlockConfig

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As transformers'."""
        config = config or PerBlockConfig.from_pretrained(path)
        return model_class(config.base_model_type).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        return model_class(config.base_model_type)._from_config(config, **kwargs)


@lru_cache(None)
def model_class(base_model_type: str) -> Any:
    """The family's own class for causal language models, with blocks that differ."""
    base = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[base_model_type]]
    own = {"config_class": config_class(base_model_type), "__module__": __name__, "_auto_class": "AutoModelForCausalLM"}
    return type("PerBlockForCausalLM", (_PerBlock, base), own)


__all__ = ["PerBlockForCausalLM"]
