"""``import ffn_fusion`` makes transformers' Auto classes and vLLM know children, without importing either, or torch.

A post-import hook (PEP 369, as wrapt implements it) registers config and model as soon as transformers is imported, or
at once where it has been. It waits for the package and not for one of its modules: those import one another half-way,
and ours would find them without their classes. vLLM gets the name of its class as soon as it has its registry.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import wrapt


@cache
def _register_classes() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from ffn_fusion.families.registry import OWN_FORMS
    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
    from ffn_fusion.modeling.configuration_per_block import PerBlockConfig, config_class
    from ffn_fusion.modeling.modeling_decilm import DeciLMForCausalLM
    from ffn_fusion.modeling.modeling_per_block import PerBlockForCausalLM

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeciLMConfig, DeciLMForCausalLM, exist_ok=True)
    DeciLMConfig.register_for_auto_class()  # save_pretrained then writes the files along
    DeciLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    AutoConfig.register(PerBlockConfig.model_type, PerBlockConfig, exist_ok=True)
    for base_model_type in OWN_FORMS:
        AutoModelForCausalLM.register(config_class(base_model_type), PerBlockForCausalLM, exist_ok=True)


def _transformers_is_there(_: Any) -> None:
    _register_classes()


def _vllm_is_there(registry: Any) -> None:
    """Name the class for children in their family's own form; Nemotron-NAS is a form that vLLM itself knows."""
    registry.ModelRegistry.register_model(
        "PerBlockForCausalLM", "ffn_fusion.engines.vllm_per_block:PerBlockForCausalLM"
    )


@cache
def register() -> None:
    """Make transformers and vLLM know children, now or when they are imported."""
    wrapt.register_post_import_hook(_transformers_is_there, "transformers")
    wrapt.register_post_import_hook(_vllm_is_there, "vllm.model_executor.models.registry")
