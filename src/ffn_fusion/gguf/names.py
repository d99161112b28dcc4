"""What GGUF calls the tensors of a checkpoint. The only such table: files are read by it and written by it."""

from __future__ import annotations

from ffn_fusion.families.llama_shaped import NAMES

_WHOLE_MODEL = {
    NAMES.embedding: "token_embd.weight",
    NAMES.final_norm: "output_norm.weight",
    NAMES.head: "output.weight",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.linear_attn": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` -> ``blk.3.attn_q.weight``."""
    if name in _WHOLE_MODEL:
        return _WHOLE_MODEL[name]
    _, _, block, *part, suffix = name.split(".")
    return f"blk.{block}.{_BLOCK['.'.join(part)]}.{suffix}"


def is_rotary(name: str) -> bool:
    """Whether the rows of a tensor are channels that rotate: Q's and K's, whose order differs in GGUF."""
    return ".self_attn.q_proj." in name or ".self_attn.k_proj." in name
