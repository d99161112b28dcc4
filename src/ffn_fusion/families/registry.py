"""Which families there are, and why some can't be: a family is a value in a file of its own, listed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ffn_fusion.blueprint import Operation
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import (
    gpt2,
    gpt_neox,
    granite,
    llama,
    llama_blocks,
    llama_like,
    mistral,
    nemotron_nas,
    norm_after,
    opt,
    per_block,
    phi3,
    qwen2,
)
from ffn_fusion.families.block_lists import check_lists
from ffn_fusion.families.family import Family, Names
from ffn_fusion.families.fields import check_types
from ffn_fusion.families.marked import marked_blocks, with_common_sizes
from ffn_fusion.families.quantised import unquantised
from ffn_fusion.families.spec import ModelSpec

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        llama.FAMILY,
        nemotron_nas.FAMILY,
        mistral.FAMILY,
        qwen2.FAMILY,
        phi3.FAMILY,
        granite.FAMILY,
        *llama_like.FAMILIES,
        *norm_after.FAMILIES,
        gpt2.FAMILY,
        opt.FAMILY,
        gpt_neox.FAMILY,
    )
}
"""By model_type."""

OWN_FORMS: dict[str, Family] = {
    **{name: family for name, family in FAMILIES.items() if family.form},
    llama.FAMILY.name: llama_blocks.FAMILY,
}
"""By base_model_type, the families of models that keep their own form, with a section for blocks that differ."""

_EXPERTS = "its FFN is a mixture of experts; a router per block picks other experts, so they can't be concatenated"
_UNFUSABLE = {
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "deepseek_v3": _EXPERTS,
    "llama4": _EXPERTS,
}


def family_of(spec: ModelSpec) -> Family:
    """The family of a model."""
    return _named(spec.family)


def _named(name: str) -> Family:
    return llama_blocks.FAMILY if name == llama_blocks.NAME else FAMILIES[name]


def names_of(spec: ModelSpec) -> Names:
    """What the model's tensors are called in its checkpoint."""
    return family_of(spec).names


def child_family(spec: ModelSpec) -> Family:
    """The family in whose form this model's children are written, as a rule; see :func:`in_child_form`."""
    return _named(family_of(spec).child)


def in_child_form(spec: ModelSpec) -> ModelSpec:
    """A child's sizes under its parent's family and config, in the most portable form that holds them.

    Raises:
        FamilyError: no form does.
    """
    spec = replace(spec, family=family_of(spec).child, pieces={}, unread=frozenset(), notes=())
    if family_of(spec).form:
        return spec
    if spec.head_counts == (spec.heads,):
        return spec
    heads = spec.head_counts[0]
    if len(spec.head_counts) > 1 or spec.hidden_size % heads:  # transformers refuses a config with such heads
        return llama_blocks.in_own_form(spec)
    sizes = {"num_attention_heads": heads, "head_dim": spec.head_dim}
    return replace(spec, heads=heads, config={**spec.config, **sizes})


def known_families() -> dict[str, tuple[Family, ...]]:
    """By model_type, the families that a model may be read as; where there are two, most models are the first.

    Models that are rewritten in Llama's form are Llamas; those that aren't keep their family's own form, and so do
    Llamas some of whose blocks were put side by side.
    """
    return {
        name: (
            *([llama.FAMILY] if family.rewrite else []),
            *([family] if family.form or not family.rewrite else []),
            *([llama_blocks.FAMILY] if family is llama.FAMILY else []),
        )
        for name, family in FAMILIES.items()
    }


def require(spec: ModelSpec, operation: Operation) -> None:
    """Raises: FamilyError: the model's family doesn't take the operation, with the reason."""
    if reason := family_of(spec).can(operation):
        raise FamilyError(f"{operation}: impossible with {spec.family} models: {reason}", "choose another operation")


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """config.json -> :class:`ModelSpec`.

    Raises:
        FamilyError: the family is unknown or can't be fused, with the reason.
        CheckpointError: the config is incomplete or wrong.
    """
    model_type = config.get("model_type")
    if model_type == per_block.MODEL_TYPE:
        model_type = config.get("base_model_type")
    supported = ", ".join(sorted(FAMILIES))
    if not isinstance(model_type, str):
        raise CheckpointError(
            "config.json has no model_type", f"this isn't a Hugging Face model; known are {supported}"
        )
    if model_type in _UNFUSABLE:
        raise FamilyError(f"family {model_type!r} can't be fused: {_UNFUSABLE[model_type]}", f"supported: {supported}")
    if model_type not in FAMILIES:
        if isinstance(text := config.get("text_config"), Mapping):
            raise FamilyError(
                f"{model_type!r} is a wrapper of a text model ({text.get('model_type')})",
                "--text-model takes the text model out",
            )
        raise FamilyError(f"family {model_type!r} isn't known", f"supported: {supported}")
    check_types(config)
    own_form = config["model_type"] == per_block.MODEL_TYPE
    families = OWN_FORMS if own_form else FAMILIES
    if model_type not in families:
        raise FamilyError(f"config.json: {model_type} has no form of its own", "correct base_model_type")
    family = families[model_type]
    config = {**family.usual, **with_common_sizes(unquantised(config))}
    if family.rewrite and not own_form and (rewriting := family.rewrite(config)):
        rewritten = replace(llama.read(rewriting.config), pieces=rewriting.pieces)
        check_lists(config, len(rewritten.blocks))
        return marked_blocks(rewritten, llama.FAMILY)
    spec = family.read(config)
    check_lists(config, len(spec.blocks))
    lists = {key: made for key, made in family.lists(config, len(spec.blocks)).items() if config.get(key) is None}
    spec = replace(spec, config={**spec.config, **lists})
    if own_form and family.form:
        return per_block.read_blocks(spec, family.form)
    return spec if family is nemotron_nas.FAMILY else marked_blocks(spec, family)
