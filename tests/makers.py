"""Tiny random models on disk, named tensor by tensor here and not by the code under test.

A block is written as (attention, ffn): attention is its number of KV heads, ``"linear"`` or None;
ffn its width, ``"linear"`` or None.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ffn_fusion.blueprint import AttentionSpec, BlockSpec, FfnSpec

Blocks = Sequence[tuple[int | Literal["linear"] | None, int | Literal["linear"] | None]]
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Made:
    """A model that was written: its folder, its config.json and its tensors."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def llama_config(**changes: Any) -> dict[str, Any]:
    """config.json of a Llama of 4 blocks, hidden 32, 4 heads on 2 KV heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "vocab_size": 61,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    } | changes


def nas_config(blocks: Blocks, **changes: Any) -> dict[str, Any]:
    """config.json of a Nemotron-NAS model of these blocks."""
    config = llama_config(**changes) | {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "num_key_value_heads": None,
        "intermediate_size": None,
        "num_hidden_layers": len(blocks),
    }
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return config | {"block_configs": [_entry(attention, ffn, heads, hidden) for attention, ffn in blocks]}


def _entry(attention: Any, ffn: Any, heads: int, hidden: int) -> dict[str, Any]:
    says: dict[str, Any] = {
        "attention": {
            "no_op": attention is None,
            "replace_with_linear": attention == "linear",
            "n_heads_in_group": heads // attention if isinstance(attention, int) else None,
        },
        "ffn": {"no_op": ffn is None, "replace_with_linear": ffn == "linear", "ffn_mult": None},
    }
    if isinstance(ffn, int) and ffn % 256:
        says["ffn"]["intermediate_size"] = ffn
    elif isinstance(ffn, int):
        says["ffn"]["ffn_mult"] = round(1.5 * ffn / hidden, 6)
    return says


def block_spec(
    *, attention: Any = "attention", ffn: Any = "gated", ffn_width: int = 0, kv_heads: int = 1, heads: int = 1
) -> BlockSpec:
    """A block of a blueprint's parent; None: it hasn't got that sub-block."""
    return BlockSpec(
        AttentionSpec(attention, *((kv_heads, heads) if attention == "attention" else (0, 0))) if attention else None,
        FfnSpec(ffn, ffn_width) if ffn else None,
    )


def blocks_of(config: dict[str, Any]) -> Blocks:
    """The blocks that a Llama config stands for."""
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return [(kv_heads, config["intermediate_size"])] * config["num_hidden_layers"]


def random_tensors(config: dict[str, Any], blocks: Blocks, seed: int = 0) -> dict[str, Tensor]:
    """float64 weights with activations of sane size and norm scales far from one."""
    generator = torch.Generator().manual_seed(seed)
    D, V = config["hidden_size"], config["vocab_size"]
    d = config.get("head_dim") or D // config["num_attention_heads"]
    Q = config["num_attention_heads"] * d

    def matrix(out: int, into: int) -> Tensor:
        return torch.randn(out, into, generator=generator, dtype=torch.float64) * (1.5 / into**0.5)

    def scale() -> Tensor:
        return torch.rand(D, generator=generator, dtype=torch.float64) * 1.5 + 0.25

    def linear(name: str, out: int, into: int, bias: bool) -> dict[str, Tensor]:
        tensors = {f"{name}.weight": matrix(out, into)}
        if bias:
            tensors[f"{name}.bias"] = torch.randn(out, generator=generator, dtype=torch.float64) * 0.3
        return tensors

    tensors = {"model.embed_tokens.weight": torch.randn(V, D, generator=generator, dtype=torch.float64)}
    for i, (attention, ffn) in enumerate(blocks):
        at = f"model.layers.{i}."
        if attention is not None:
            tensors[at + "input_layernorm.weight"] = scale()
        if attention == "linear":
            tensors |= linear(at + "self_attn.linear_attn", D, D, False)
        elif attention is not None:
            every, alone = bool(config.get("attention_bias")), bool(config.get("qkv_bias"))
            for name, out, into in (
                ("q", Q, D),
                ("k", attention * d, D),
                ("v", attention * d, D),
                ("o", D, Q),
            ):
                tensors |= linear(f"{at}self_attn.{name}_proj", out, into, every or (alone and name != "o"))
        if ffn is not None:
            tensors[at + "post_attention_layernorm.weight"] = scale()
        if ffn == "linear":
            tensors |= linear(at + "mlp.linear_mlp", D, D, False)
        elif ffn is not None:
            bias = bool(config.get("mlp_bias"))
            for name, out, into in (("gate", ffn, D), ("up", ffn, D), ("down", D, ffn)):
                tensors |= linear(f"{at}mlp.{name}_proj", out, into, bias)
    tensors["model.norm.weight"] = scale()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(V, D)
    return tensors


def write_model(
    folder: Path,
    config: dict[str, Any],
    blocks: Blocks | None = None,
    *,
    dtype: str = "F32",
    seed: int = 0,
    shards: int = 1,
    tensors: dict[str, Tensor] | None = None,
) -> Made:
    """Write a random model; ``tensors`` replaces some of them (kept in their own dtype)."""
    folder.mkdir(parents=True, exist_ok=True)
    full = random_tensors(config, blocks if blocks is not None else blocks_of(config), seed)
    full = {name: tensor.to(DTYPES[dtype]) for name, tensor in full.items()} | (tensors or {})
    names = list(full)
    if shards == 1:
        save_file(full, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        files = {
            name: f"model-{i * shards // len(names) + 1:05d}-of-{shards:05d}.safetensors"
            for i, name in enumerate(names)
        }
        for file in sorted(set(files.values())):
            save_file({n: full[n] for n in names if files[n] == file}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return Made(folder, config, full)


def tree_sha256(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def random_ids(config: dict[str, Any], windows: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, config["vocab_size"], (windows, tokens), generator=generator)
