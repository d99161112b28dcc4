"""Nemotron-NAS (DeciLM): a Llama whose blocks differ. block_configs says what each block has.

KV heads of a block = num_attention_heads / n_heads_in_group. FFN width = int(2 * ffn_mult * hidden / 3), rounded up
to a multiple of 256, unless the block names its ``intermediate_size``. Children are written in this form too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families.family import Family
from ffn_fusion.families.fields import block_count, flag, whole, without_foreign_pad
from ffn_fusion.families.llama_shaped import NAMES, common, tensors
from ffn_fusion.families.rotary import rotary_settings, tidy_rotary
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec

MODEL_TYPE = "nemotron-nas"

WIDTH_MULTIPLE = 256
"""Engines compute an FFN's width from ffn_mult and round it up to this."""

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
_NOTHING = BlockSpec(None, None)
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_UNSUPPORTED = {
    "attention": (
        "window_length",
        "num_sink_tokens",
        "unshifted_sink",
        "use_prefill_window_in_sink_attention",
        "sparsify",
    ),
    "ffn": ("sparsify", "moe"),
}


def width_of(ffn_mult: float, hidden_size: int) -> int:
    """The FFN width that ``ffn_mult`` stands for, as every engine computes it."""
    width = int(2 * ffn_mult * hidden_size / 3)
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def mult_of(width: int, hidden_size: int) -> float:
    """The ``ffn_mult`` that gives ``width`` back; exact for multiples of 256, which is asserted."""
    mult = round(1.5 * width / hidden_size, 6)
    assert width_of(mult, hidden_size) == width, (width, hidden_size)
    return mult


def read(config: Mapping[str, Any]) -> ModelSpec:
    """Raises: CheckpointError: a field is missing or wrong. FamilyError: a sub-block of a kind we don't know."""
    fields = common(config)
    count = block_count(config)
    blocks = config.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != count:
        found = f"{len(blocks)} entries" if isinstance(blocks, list) else "no list"
        raise CheckpointError(f"config.json: block_configs has {found} for {count} blocks", "correct the config")
    return ModelSpec(
        family="nemotron-nas",
        blocks=tuple(read_block(i, block, fields["heads"], fields["hidden_size"]) for i, block in enumerate(blocks)),
        **fields,
    )


def read_block(i: int, block: Any, heads: int, hidden: int, usual: BlockSpec = _NOTHING) -> BlockSpec:
    """An entry of block_configs.

    Sizes are said in Nemotron-NAS' words or in those of NVIDIA's puzzletron (``num_key_value_heads`` or
    ``num_kv_heads``, ``intermediate_size``).

    Args:
        usual: what a block has whose entry doesn't say it, where it may leave that out.

    Raises:
        CheckpointError: a size is missing or wrong. FamilyError: a sub-block of a kind we don't know.
    """
    place = f"config.json: block_configs[{i}]"
    if not isinstance(block, Mapping) or not all(isinstance(block.get(p), Mapping) for p in ("attention", "ffn")):
        raise CheckpointError(f"{place} doesn't say what attention and ffn are", "correct the config")
    if block.get("parallel_blocks"):
        raise FamilyError(f"{place} has parallel_blocks, which aren't supported", "choose another parent")
    for part, keys in _UNSUPPORTED.items():
        for key in keys:
            if block[part].get(key):
                raise FamilyError(f"{place}.{part}.{key} is set, which isn't supported", "choose another parent")
    return BlockSpec(
        _attention(place, block["attention"], heads, usual.attention), _ffn(place, block["ffn"], hidden, usual.ffn)
    )


def _attention(
    place: str, attention: Mapping[str, Any], heads: int, usual: AttentionSpec | None
) -> AttentionSpec | None:
    if flag(attention, "no_op", f"{place}.attention"):
        return None
    if flag(attention, "replace_with_linear", f"{place}.attention"):
        return AttentionSpec("linear", 0, 0)
    group = attention.get("n_heads_in_group")
    said = next((key for key in _KV_HEADS if attention.get(key) is not None), None)
    if group is None and said:
        kv_heads = whole(attention, said, place=f"{place}.attention")
        if heads % kv_heads:
            raise CheckpointError(f"{place}.attention.{said} is {kv_heads} for {heads} heads", "correct it")
        return AttentionSpec("attention", kv_heads, heads)
    if group is None and usual is not None:
        return usual
    if isinstance(group, bool) or not isinstance(group, int) or not 0 < group <= heads or heads % group:
        raise CheckpointError(f"{place}.attention.n_heads_in_group is {group!r} for {heads} heads", "correct it")
    return AttentionSpec("attention", heads // group, heads)


def _ffn(place: str, ffn: Mapping[str, Any], hidden: int, usual: FfnSpec | None) -> FfnSpec | None:
    if flag(ffn, "no_op", f"{place}.ffn"):
        return None
    if flag(ffn, "replace_with_linear", f"{place}.ffn"):
        return FfnSpec("linear", 0)
    mult = ffn.get("ffn_mult")
    if mult is None and ffn.get("intermediate_size") is not None:
        return FfnSpec("gated", whole(ffn, "intermediate_size", place=f"{place}.ffn"))
    if mult is None and usual is not None:
        return usual
    if isinstance(mult, bool) or not isinstance(mult, int | float) or not 0 < mult < 1 << 16:
        raise CheckpointError(f"{place}.ffn.ffn_mult is {mult!r}, not a positive number", "correct the config")
    return FfnSpec("gated", whole({"width": width_of(mult, hidden)}, "width", place=f"{place}.ffn"))


def write(spec: ModelSpec, width_multiple: int = WIDTH_MULTIPLE) -> dict[str, Any]:
    """config.json with every key that one of the engines insists on, and everything else of ``spec.config`` (rotary
    scaling, token ids, dtype) passed on.

    Widths are written as ``ffn_mult`` where ``width_multiple`` is one that engines know, else as they are.
    """
    carried = without_foreign_pad(spec.config, spec.vocab_size)
    config = {key: value for key, value in carried.items() if key not in _REPLACED}
    config |= rotary_settings(spec.config)
    written = {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": AUTO_MAP,
        **config,
        "num_hidden_layers": len(spec.blocks),
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": [_written(block, spec, width_multiple) for block in spec.blocks],
    }
    return tidy_rotary(written)


def stand_in(spec: ModelSpec) -> ModelSpec:
    """A model of this form with the sizes of one that keeps its family's own: for timing its sub-blocks.

    Norms, biases of FFNs and positions are then Llama's, and an FFN without a gate has one.
    """
    blocks = tuple(
        replace(block, ffn=replace(block.ffn, kind="gated")) if block.ffn and block.ffn.kind == "plain" else block
        for block in spec.blocks
    )
    config = {
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "hidden_act": spec.activation,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
    }
    return replace(
        spec,
        family=MODEL_TYPE,
        blocks=blocks,
        attention_bias=False,
        qkv_bias=False,
        mlp_bias=False,
        side_by_side=False,
        config=config,
        pieces={},
    )


def _written(block: BlockSpec, spec: ModelSpec, width_multiple: int) -> dict[str, Any]:
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


FAMILY = Family("nemotron-nas", read, NAMES, tensors, writer=write)
