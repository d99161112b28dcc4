"""What a GGUF file says of a model besides its tensors: config.json as llama.cpp's metadata, and the other way round.

A model whose blocks are all alike is a ``llama``; any other is a ``deci``, whose heads, KV heads and FFN widths are
arrays with a number per block. A block without attention has 0 heads, a linear layer in an attention's place has
heads and 0 KV heads, a block without FFN has width 0. For norms of queries and keys see ``gguf.qk_norm``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec, family_of, read_spec
from ffn_fusion.families.fields import whole
from ffn_fusion.gguf import qk_norm
from ffn_fusion.gguf.architectures import ARCHITECTURES
from ffn_fusion.gguf.file import AGAIN, GgufFile
from ffn_fusion.gguf.rotary import read_scaling, rotary_metadata

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
_SIZES = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
_REFUSED = {
    "expert_count": "a mixture of experts",
    "attention.sliding_window": "sliding-window attention",
    "attention.scale": "an attention scale of its own",
    "attention.clamp_kqv": "clamped attention",
    "logit_scale": "scaled logits",
    "residual_scale": "a scaled residual stream",
    "embedding_scale": "scaled embeddings",
    "use_parallel_residual": "a parallel residual stream",
}
"""Metadata that changes what the model computes: a plain Llama with these weights would be another model."""


# ---- written


def architecture(spec: ModelSpec) -> Literal["llama", "deci", "qwen3", "openelm"]:
    """Return ``llama`` if every block has the same attention and the same gated FFN, else ``deci``.

    A model with norms of queries and keys is ``qwen3`` or ``openelm``.
    """
    if own := qk_norm.architecture(spec):
        return own
    first = spec.blocks[0]
    plain = first.attention is not None and first.attention.kind == "attention"
    plain = plain and first.ffn is not None and first.ffn.kind != "linear"
    return "llama" if plain and all(block == first for block in spec.blocks) else "deci"


def hyperparameters(spec: ModelSpec) -> dict[str, int | float | str | list[int]]:
    """Key after the architecture's name -> value, for every key that llama.cpp reads of a Llama.

    Raises:
        CheckError: a rotary scaling that llama.cpp computes in another way, or not at all.
    """
    values: dict[str, int | float | str | list[int]] = {
        "block_count": len(spec.blocks),
        "context_length": whole(spec.config, "max_position_embeddings", 2048),
        "embedding_length": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.head_dim,
    }
    own = qk_norm.architecture(spec) is not None
    sizes = [qk_norm.sizes(block) if own else _sizes(spec, block) for block in spec.blocks]
    plain = architecture(spec) in ("llama", "qwen3")
    for key, per_block in zip(_SIZES, map(list, zip(*sizes, strict=True)), strict=True):
        values[key] = per_block[0] if plain else per_block
    return values | rotary_metadata(spec.config)


def _sizes(spec: ModelSpec, block: BlockSpec) -> tuple[int, int, int]:
    """Query heads, KV heads and FFN width of a block."""
    attention, ffn = block.attention, block.ffn
    heads = attention.heads or spec.heads if attention else 0  # a linear layer has heads, but no KV heads
    return heads, attention.kv_heads if attention else 0, ffn.width if ffn else 0


# ---- read


def read_config(gguf: GgufFile) -> dict[str, Any]:
    """config.json of the model in this file, as a checkpoint of its family has it.

    Raises:
        FamilyError: another architecture, or one with extras, with the reason.
        CheckpointError: metadata missing, wrong, or of a rotary scaling that can't be carried over.
    """
    _check_supported(gguf)
    biases = _biases(gguf)
    form = ARCHITECTURES[gguf.architecture]
    if "qkv_bias" in biases and form.model_type == "llama":  # a Llama has all four or none
        form = ARCHITECTURES["deci"]
    if "qkv_bias" in biases and form.model_type == "qwen3":
        raise FamilyError(
            f"{gguf.path}: a Qwen3 with biases on Q, K and V alone isn't supported", "choose another parent"
        )
    hidden = gguf.whole("embedding_length")
    heads, kv_heads, widths = (_per_block(gguf, key) for key in _SIZES)
    most = max(heads) or max(1, hidden // gguf.whole("attention.key_length"))  # a model without any attention
    head_dim = gguf.whole("attention.key_length", hidden // most)
    _check_heads(gguf, heads, kv_heads, head_dim)
    theta = gguf.number("rope.freq_base", 10000.0)
    scaling = read_scaling(gguf, theta, head_dim)
    plain = not form.differing
    config: dict[str, Any] = {
        "architectures": [form.model_class],
        "model_type": form.model_type,
        "hidden_size": hidden,
        "intermediate_size": widths[0] if plain else None,
        "num_hidden_layers": len(heads),
        "num_attention_heads": most,
        "num_key_value_heads": kv_heads[0] if plain else None,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": gguf.whole("context_length"),
        "rms_norm_eps": gguf.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": vocabulary_size(gguf),
        "tie_word_embeddings": OUTPUT not in gguf.tensors,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta},
        "dtype": _dtype(gguf),
        **biases,
        **form.fields(gguf),
    }
    config |= _token_ids(gguf, config["vocab_size"])
    if form.model_type == "nemotron-nas":
        config["block_configs"] = [_block(most, *sizes) for sizes in zip(heads, kv_heads, widths, strict=True)]
    elif form.differing:
        return _per_block_config(config, heads, kv_heads, widths)
    return config


def _per_block_config(
    config: dict[str, Any], heads: list[int], kv_heads: list[int], widths: list[int]
) -> dict[str, Any]:
    """A family's own config of these blocks, of which 0 heads or a width of 0 stand for a sub-block that isn't there.

    If the blocks are alike it is that of a plain model.
    """
    alike = {**config, "num_key_value_heads": max(kv_heads) or max(heads) or 1, "intermediate_size": max(widths) or 1}
    spec = read_spec(alike)
    blocks = tuple(
        BlockSpec(AttentionSpec("attention", kv, count) if count else None, FfnSpec("gated", width) if width else None)
        for count, kv, width in zip(heads, kv_heads, widths, strict=True)
    )
    if blocks == spec.blocks:
        return alike
    return family_of(spec).write(replace(spec, blocks=blocks), 1)


def _biases(gguf: GgufFile) -> dict[str, bool]:
    """Which matrices have biases: those of an attention, all four of them or Q, K and V alone, and those of an FFN.

    ``qkv_bias`` stands there only where it's true: some engines take it over ``attention_bias`` wherever it stands.
    """
    qkv, output, ffn = (
        any(name.endswith(f".{part}.bias") for name in gguf.tensors) for part in ("attn_q", "attn_output", "ffn_down")
    )
    alone = {"qkv_bias": True} if qkv and not output else {}
    return {"attention_bias": output, **alone, "mlp_bias": ffn}


def output_dtype(kind_name: str) -> str:
    """Safetensors dtype of a converted tensor: stored floats stay, everything quantised becomes F32."""
    return kind_name if kind_name in ("F16", "BF16") else "F32"


def _check_supported(gguf: GgufFile) -> None:
    if (form := ARCHITECTURES.get(gguf.architecture)) is None:
        known = ", ".join(ARCHITECTURES)
        raise FamilyError(
            f"{gguf.path}: architecture {gguf.architecture!r} isn't read from GGUF, only {known} are",
            "start from the model's safetensors",
        )
    for key, what in _REFUSED.items():
        if gguf.setting(key) and key not in form.reads:
            raise FamilyError(
                f"{gguf.path}: {gguf.architecture}.{key} is set: {what}, which isn't supported", "choose another parent"
            )


def _per_block(gguf: GgufFile, key: str) -> list[int]:
    """A size of every block. Where the file says one number, all have it."""
    default = _per_block(gguf, "attention.head_count") if key == "attention.head_count_kv" else None
    values = gguf.wholes(key, gguf.whole("block_count"), default)
    if not ARCHITECTURES[gguf.architecture].differing and len(set(values)) > 1:
        raise FamilyError(
            f"{gguf.path}: {gguf.architecture}.{key} differs from block to block", "start from the safetensors"
        )
    return values


def _check_heads(gguf: GgufFile, heads: list[int], kv_heads: list[int], head_dim: int) -> None:
    if head_dim % 2:
        raise CheckpointError(f"{gguf.path}: heads of {head_dim} channels, which can't rotate in pairs", AGAIN)
    if len(counts := set(heads) - {0}) > 1:
        raise FamilyError(f"{gguf.path}: its blocks have {sorted(counts)} heads", "choose another parent")
    for i, (count, shared) in enumerate(zip(heads, kv_heads, strict=True)):
        if shared and (count % shared or not count):
            raise CheckpointError(f"{gguf.path}: block {i} has {count} heads and {shared} key/value heads", AGAIN)
    for key in ("attention.value_length", "rope.dimension_count"):
        size = gguf.whole(key, head_dim)
        if size != head_dim and key not in ARCHITECTURES[gguf.architecture].reads:
            raise FamilyError(
                f"{gguf.path}: {gguf.architecture}.{key} is {size}, but heads have {head_dim} channels: not supported",
                "choose another parent",
            )


def _block(most: int, heads: int, kv_heads: int, width: int) -> dict[str, Mapping[str, Any]]:
    """An entry of ``block_configs``, with the FFN's width as it is: ``ffn_mult`` can't say every width."""
    group = most // kv_heads if kv_heads else None
    linear = bool(heads and not kv_heads)
    return {
        "attention": {"no_op": not heads, "replace_with_linear": linear, "n_heads_in_group": group},
        "ffn": {"no_op": not width, "replace_with_linear": False, "intermediate_size": width or None},
    }


def vocabulary_size(gguf: GgufFile) -> int:
    """Return the number of rows of the token embedding. Raises: CheckpointError: there is no such matrix."""
    embedding = gguf.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{gguf.path}: no tensor {EMBEDDING} with two dimensions", AGAIN)
    return embedding.shape[0]


def _token_ids(gguf: GgufFile, vocabulary: int) -> dict[str, int]:
    found = {}
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = gguf.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token, int) and 0 <= token < vocabulary:
            found[f"{ours}_token_id"] = token
    return found


def _dtype(gguf: GgufFile) -> str:
    """What to compute in: half precision if every matrix has it (norms never do in GGUF), else float32."""
    kinds = {output_dtype(tensor.kind_name) for tensor in gguf.tensors.values() if len(tensor.shape) > 1}
    if len(kinds) > 1:
        return "float32"
    return {"F16": "float16", "BF16": "bfloat16"}.get(kinds.pop(), "float32")
