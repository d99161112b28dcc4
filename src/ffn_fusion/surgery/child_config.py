"""config.json of a child: the Nemotron-NAS (DeciLM) form, with every key that one of the engines insists on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_fusion.families import BlockSpec, ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE, mult_of

_MODELING = Path(__file__).parent.parent / "modeling"
_FILES = ("configuration_decilm.py", "layers_decilm.py", "modeling_decilm.py")
MODELING_FILES = {name: _MODELING / name for name in _FILES}
"""The files that travel inside a child, so that trust_remote_code is enough to load it. They need only transformers."""

AUTO_MAP = {
    "AutoConfig": "configuration_decilm.DeciLMConfig",
    "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
}
_REPLACED = (
    "architectures",
    "model_type",
    "auto_map",
    "intermediate_size",
    "num_key_value_heads",
    "num_hidden_layers",
)


def modeling_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of the code that travels inside a child."""
    for name, path in MODELING_FILES.items():
        yield name, path.read_bytes()


def child_config(spec: ModelSpec, width_multiple: int = WIDTH_MULTIPLE) -> dict[str, Any]:
    """The child's config, with everything else of the parent's (rotary scaling, token ids, dtype) passed on."""
    config = {key: value for key, value in spec.config.items() if key not in _REPLACED}
    config |= rope_settings(spec)
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": AUTO_MAP,
        **config,
        "num_hidden_layers": len(spec.blocks),
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": [_block(block, spec, width_multiple) for block in spec.blocks],
    }


def _block(block: BlockSpec, spec: ModelSpec, width_multiple: int) -> dict[str, Any]:
    attention, ffn = block.attention, block.ffn
    group = spec.heads // attention.kv_heads if attention and attention.kv_heads else None
    says: dict[str, dict[str, Any]] = {
        "attention": {
            "no_op": attention is None,
            "replace_with_linear": bool(attention and attention.kind == "linear"),
            "n_heads_in_group": group,
        },
        "ffn": {
            "no_op": ffn is None,
            "replace_with_linear": bool(ffn and ffn.kind == "linear"),
            "ffn_mult": None,
        },
    }
    if ffn and ffn.kind == "gated":
        if width_multiple % WIDTH_MULTIPLE == 0:
            says["ffn"]["ffn_mult"] = mult_of(ffn.width, spec.hidden_size)
        else:  # exact widths: vLLM takes them where ffn_mult is absent
            del says["ffn"]["ffn_mult"]
            says["ffn"]["intermediate_size"] = ffn.width
    return says


def rope_settings(spec: ModelSpec) -> dict[str, Any]:
    """Rotary settings in both spellings: rope_theta + rope_scaling (engines) and rope_parameters (transformers 5)."""
    config = spec.config
    parameters = dict(config.get("rope_parameters") or {})
    theta = config.get("rope_theta", parameters.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling")
    if scaling is None and parameters.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    if not parameters:
        parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        parameters["rope_type"] = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": parameters}
