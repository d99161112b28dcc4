"""Tiny random models written as GGUF the way llama.cpp's converter does, by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|bos|>", "<|eos|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "1"), ("1", "2"), ("12", "3"), ("a", "n")]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *("".join(merge) for merge in MERGES)]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS, KV_HEADS = 4, 2
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def make_llama(**changes: Any) -> LlamaForCausalLM:
    """Hidden 64, 4 heads on 2 KV heads, 2 blocks; norms and biases are random too."""
    torch.manual_seed(0)
    return _varied(LlamaForCausalLM(LlamaConfig(**(SIZES | changes))))


def make_family(model_type: str, **changes: Any) -> Any:
    """The same sizes in another family."""
    torch.manual_seed(0)
    return _varied(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SIZES | changes))))


def _varied(model: Any) -> Any:
    for name, tensor in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            tensor.data += 0.2 * torch.randn_like(tensor)
    return model.eval()


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    kind: str = "F32",
    interleave: bool = True,
    leave_out: tuple[str, ...] = (),
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    arch: str = "llama",
    pre: str = "smollm",
    norms_plus: float = 0.0,
    values: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``model``; its matrices are quantised as ``kind``, and hold the quantised values from then on."""
    config, quantised = model.config, GGMLQuantizationType[kind]
    writer = GGUFWriter(path, arch)
    about = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        **(values or {}),
    }
    _add_values(writer, {key: value for key, value in about.items() if key not in leave_out})
    _add_tokenizer(writer, pre, leave_out)
    for name, tensor in model.state_dict().items():
        ours = gguf_name(name)
        if ours in leave_out or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        array = tensor.numpy()
        if array.ndim > 1 and kind != "F32":
            stored = quantize(array, quantised)
            tensor.copy_(torch.from_numpy(dequantize(stored, quantised)))
            array = stored
        if "norm" in ours:
            array = array + np.float32(norms_plus)
        if interleave and (".attn_q." in ours or ".attn_k." in ours):
            array = interleaved(array, HEADS if ".attn_q." in ours else KV_HEADS)
        writer.add_tensor(ours, array, raw_dtype=quantised if tensor.ndim > 1 else None)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, block, *part, suffix = name.split(".")
    return f"blk.{block}.{NAMES['.'.join(part)]}.{suffix}"


def interleaved(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Hugging Face's rotary order to GGUF's: a channel's partner, half a head away, comes next to it."""
    order = np.arange(len(rows)).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
    return np.ascontiguousarray(rows[order])


def _add_values(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add[type(value)](key, value)


def _add_tokenizer(writer: GGUFWriter, pre: str, leave_out: tuple[str, ...]) -> None:
    if "tokenizer" in leave_out:
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
