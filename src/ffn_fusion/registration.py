"""``import ffn_fusion`` makes transformers' Auto classes know children, without importing transformers or torch itself.

A post-import hook (PEP 369, as wrapt implements it) registers config and model as soon as transformers is imported, or
at once where it has been. It waits for the package and not for one of its modules: those import one another half-way,
and ours would find them without their classes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import wrapt


@cache
def _register_classes() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from ffn_fusion.families.registry import FAMILIES
    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
    from ffn_fusion.modeling.configuration_per_block import PerBlockConfig, config_class
    from ffn_fusion.modeling.modeling_decilm import DeciLMForCausalLM
    from ffn_fusion.modeling.modeling_per_block import PerBlockForCausalLM

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeciLMConfig, DeciLMForCausalLM, exist_ok=True)
    DeciLMConfig.register_for_auto_class()  # save_pretrained then writes the files along
    DeciLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    AutoConfig.register(PerBlockConfig.model_type, PerBlockConfig, exist_ok=True)
    for family in FAMILIES.values():
        if family.form:
            AutoModelForCausalLM.register(config_class(family.name), PerBlockForCausalLM, exist_ok=True)


def _transformers_is_there(_: Any) -> None:
    _register_classes()


@cache
def register() -> None:
    """Make the Auto classes know children, now or when transformers is imported."""
    wrapt.register_post_import_hook(_transformers_is_there, "transformers")


def register_with_vllm() -> None:
    """Make vLLM know children, too; it calls this in each of its processes."""
    from vllm.model_executor.models.registry import ModelRegistry

    register()
    ModelRegistry.register_model("PerBlockForCausalLM", "ffn_fusion.modeling.vllm_per_block:PerBlockForCausalLM")
