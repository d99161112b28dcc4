"""What a GGUF file says of a model beside its tensors: the hyperparameters that llama.cpp computes with.

A model whose blocks are all alike is a ``llama``; any other is a ``deci``, whose heads, KV heads and FFN widths are
arrays with a number per block. A block without attention has 0 heads, a linear layer in an attention's place has
heads and 0 KV heads, a block without FFN has width 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ffn_fusion.errors import CheckError
from ffn_fusion.families import BlockSpec, ModelSpec
from ffn_fusion.families.fields import whole
from ffn_fusion.portability.rules import problems

Architecture = Literal["llama", "deci"]
_YARN = {"factor", "original_max_position_embeddings"}
_ROTARY_NAMES = {"type", "rope_type", "rope_theta"}
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "finetuned": True}
"""What llama.cpp computes with, whatever a file says."""


def architecture(spec: ModelSpec) -> Architecture:
    """``llama`` where every block has the same attention and the same gated FFN, else ``deci``."""
    first = spec.blocks[0]
    plain = first.attention is not None and first.attention.kind == "attention"
    plain = plain and first.ffn is not None and first.ffn.kind == "gated"
    return "llama" if plain and all(block == first for block in spec.blocks) else "deci"


def check_loadable(spec: ModelSpec) -> None:
    """Refuse what llama.cpp can't load, and what it would load and compute wrongly without a word.

    Raises:
        CheckError: the first such thing, with the block and the reason.
    """
    found = problems(spec, "llama.cpp")
    if found:
        place = "" if found[0].block is None else f"block {found[0].block}: "
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        fix = "write it in another form first: ffn-fusion check --fix" if all(p.fixable for p in found) else ""
        raise CheckError(
            f"llama.cpp can't run this model: {place}it {found[0].reason}{more}", fix or "choose another engine"
        )
    rotary(spec.config)


def hyperparameters(spec: ModelSpec) -> dict[str, int | float | str | list[int]]:
    """Key behind the architecture's name -> value, for every key that llama.cpp reads of a Llama."""
    config = spec.config
    theta, scaling = rotary(config)
    values: dict[str, int | float | str | list[int]] = {
        "block_count": len(spec.blocks),
        "context_length": whole(config, "max_position_embeddings", 2048),
        "embedding_length": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": theta,
    }
    heads = [head_count(spec, block) for block in spec.blocks]
    sizes = {
        "attention.head_count": heads,
        "attention.head_count_kv": [block.attention.kv_heads if block.attention else 0 for block in spec.blocks],
        "feed_forward_length": [block.ffn.width if block.ffn else 0 for block in spec.blocks],
    }
    plain = architecture(spec) == "llama"
    values |= {key: per_block[0] if plain else per_block for key, per_block in sizes.items()}
    kind = scaling.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = _original_context(config, scaling)
    return values


def head_count(spec: ModelSpec, block: BlockSpec) -> int:
    """Query heads of a block; 0 where it has no attention."""
    return spec.heads if block.attention else 0


def rotary(config: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """The rotary base, and the scaling with its ``rope_type`` (empty: none), in either spelling of config.json.

    Raises:
        CheckError: a scaling that llama.cpp computes in another way, or not at all.
    """
    parameters = dict(config.get("rope_parameters") or {})
    theta = float(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0)
    scaling = dict(config.get("rope_scaling") or parameters)
    kind = scaling["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, {}
    elsewhere = "choose another engine"
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckError(f"llama.cpp has no rotary scaling {kind!r} for a Llama", elsewhere)
    if kind == "yarn":
        factor = float(scaling["factor"])
        defaults = {**_YARN_DEFAULTS, "attention_factor": 0.1 * math.log(factor) + 1 if factor > 1 else 1.0}
        for key, value in scaling.items():
            if key in _YARN | _ROTARY_NAMES or value is None:
                continue
            if key not in defaults or not math.isclose(float(value), float(defaults[key]), rel_tol=1e-6):
                raise CheckError(f"llama.cpp's YaRN scaling can't be told {key} {value!r}", elsewhere)
    return theta, scaling


def _original_context(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> int:
    key = "original_max_position_embeddings"
    return whole(scaling if scaling.get(key) else config, key, whole(config, "max_position_embeddings", 2048))
