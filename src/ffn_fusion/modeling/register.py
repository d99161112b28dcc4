"""``import ffn_fusion`` makes transformers' Auto classes know children, without importing transformers (or torch) itself.

Post-import hooks (PEP 369, as wrapt implements them) put a first step in front of the Auto classes' own entrances; it
registers config and model when one of them is first called. Not at import: transformers' modules import one another
half-way, and ours would find them without their classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import wrapt

_ENTRANCES = {
    "transformers.models.auto.configuration_auto": ("AutoConfig.from_pretrained", "AutoConfig.for_model"),
    "transformers.models.auto.modeling_auto": (
        "AutoModelForCausalLM.from_pretrained",
        "AutoModelForCausalLM.from_config",
    ),
}


@cache
def _register_classes() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
    from ffn_fusion.modeling.modeling_decilm import DeciLMForCausalLM

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeciLMConfig, DeciLMForCausalLM, exist_ok=True)
    DeciLMConfig.register_for_auto_class()  # save_pretrained then writes the files along
    DeciLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")


def _registered_first(
    entrance: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _register_classes()
    return entrance(*args, **kwargs)


def _open(module: ModuleType) -> None:
    for name in _ENTRANCES[module.__name__]:
        wrapt.wrap_function_wrapper(module, name, _registered_first)


@cache
def register() -> None:
    """Make the Auto classes know children, now or when they're imported."""
    for module in _ENTRANCES:
        wrapt.register_post_import_hook(_open, module)
