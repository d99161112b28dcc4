"""The form that keeps a family's own tensor names and config, for what Nemotron-NAS can't hold.

``per_layer_config`` says where a block differs, as transformers' configs read it: fields of the family's own config
with other values, and ``skip``. Such a model is made of transformers' own classes: see ``modeling.modeling_per_block``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ffn_fusion.blueprint import PARTS, Part
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.fields import whole
from ffn_fusion.families.spec import BlockSpec, FfnSpec, ModelSpec

MODEL_TYPE = "per-block"
AUTO_MAP = {
    "AutoConfig": "configuration_per_block.PerBlockConfig",
    "AutoModelForCausalLM": "modeling_per_block.PerBlockForCausalLM",
}
_SKIPPED: dict[Part, str] = {"attention": "attention", "ffn": "mlp"}


@dataclass(frozen=True)
class Modules:
    """A sub-block in transformers' decoder layer: the module that computes it, and those that do nothing without it.

    ``adds`` is the one whose result is added to the state, where that's another: a norm.
    """

    computes: str
    around: tuple[str, ...]
    adds: str = ""

    def written(self) -> dict[str, Any]:
        """As the config of a model says it."""
        return {"computes": self.computes, "around": list(self.around), "adds": self.adds or self.computes}


@dataclass(frozen=True)
class PerBlockForm:
    """What transformers calls things in a family.

    Args:
        attention, ffn: modules of a decoder layer.
        width, heads, kv_heads, blocks: config fields; ``kv_heads`` is None where every query head has its own.
    """

    attention: Modules
    ffn: Modules
    width: str = "intermediate_size"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    blocks: str = "num_hidden_layers"


def read_blocks(spec: ModelSpec, form: PerBlockForm) -> ModelSpec:
    """The model with blocks as ``per_layer_config`` says, where its config has that.

    Raises:
        CheckpointError: a block that isn't there, or something of a block that isn't a size.
    """
    says = spec.config.get("per_layer_config") or {}
    if not isinstance(says, Mapping) or not all(isinstance(own, Mapping) for own in says.values()):
        raise CheckpointError("config.json: per_layer_config is no object of objects", "correct the config")
    numbers = {str(i) for i in range(len(spec.blocks))}
    if strange := sorted(set(map(str, says)) - numbers):
        raise CheckpointError(
            f"config.json: per_layer_config has block {strange[0]} of {len(spec.blocks)}", "correct the config"
        )
    blocks = [_block(i, block, says.get(str(i), {}), form) for i, block in enumerate(spec.blocks)]
    return replace(spec, blocks=tuple(blocks))


def _block(i: int, block: BlockSpec, own: Mapping[str, Any], form: PerBlockForm) -> BlockSpec:
    place, (attention, ffn) = f"config.json: per_layer_config[{i}]", (block.attention, block.ffn)
    known = {"skip", form.width, form.heads, form.kv_heads}
    if strange := sorted(set(own) - known):
        raise CheckpointError(f"{place} has {strange[0]}, which isn't known there", "correct the config")
    skip = own.get("skip", [])
    if not isinstance(skip, Sequence) or isinstance(skip, str) or set(skip) - set(_SKIPPED.values()):
        raise CheckpointError(f"{place}.skip is {skip!r}, not a list of attention and mlp", "correct the config")
    if attention and form.heads in own:
        attention = replace(attention, heads=whole(own, form.heads, place=place))
    if attention and form.kv_heads in own:
        attention = replace(attention, kv_heads=whole(own, str(form.kv_heads), place=place))
    if attention and attention.heads % attention.kv_heads:
        raise CheckpointError(
            f"{place}: {attention.heads} heads can't share {attention.kv_heads} KV heads evenly", "correct the config"
        )
    if ffn and form.width in own:
        ffn = replace(ffn, width=whole(own, form.width, place=place))
    return BlockSpec(
        None if _SKIPPED["attention"] in skip else attention,
        None if _SKIPPED["ffn"] in skip else ffn,
    )


def write(spec: ModelSpec, usual: BlockSpec, form: PerBlockForm) -> dict[str, Any]:
    """config.json of a model in this form.

    Args:
        usual: a block as the fields of the config describe it that hold for all blocks.
    """
    own = {str(i): _differs(block, usual, form) for i, block in enumerate(spec.blocks)}
    base = spec.config.get("base_model_type", spec.config["model_type"])
    return {
        **spec.config,
        "architectures": ["PerBlockForCausalLM"],
        "model_type": MODEL_TYPE,
        "base_model_type": base,
        "auto_map": AUTO_MAP,
        "sub_blocks": {"attention": form.attention.written(), "ffn": form.ffn.written()},
        form.blocks: len(spec.blocks),
        "tie_word_embeddings": spec.tied,
        "per_layer_config": {i: differs for i, differs in own.items() if differs},
    }


def _differs(block: BlockSpec, usual: BlockSpec, form: PerBlockForm) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if skip := [_SKIPPED[part] for part in PARTS if block.part(part) is None]:
        found["skip"] = skip
    if block.attention and usual.attention and block.attention != usual.attention:
        assert form.kv_heads is not None
        found[form.kv_heads] = block.attention.kv_heads
        if block.attention.heads != usual.attention.heads:
            found[form.heads] = block.attention.heads
    if isinstance(block.ffn, FfnSpec) and block.ffn != usual.ffn:
        found[form.width] = block.ffn.width
    return found
