"""Models of published sizes that aren't here, for what planners say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ffn_fusion.families import ModelSpec

# name: hidden size, FFN width, blocks, heads
_SIZES = {
    "Llama-3.1-8B": (4096, 14_336, 32, 32),
    "Llama-3.1-70B": (8192, 28_672, 80, 64),
    "Llama-3.1-405B": (16_384, 53_248, 126, 128),
}


def llamas() -> dict[str, ModelSpec]:
    """What each is made of."""
    return {name: _spec(*sizes) for name, sizes in _SIZES.items()}


def _spec(hidden: int, width: int, blocks: int, heads: int) -> ModelSpec:
    from ffn_fusion.families import read_spec

    sizes = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": blocks}
    others = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False}
    return read_spec({"model_type": "llama", **sizes, "num_attention_heads": heads, **others})
