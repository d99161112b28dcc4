"""Granite 3 and 4, dense: Llama with multipliers, all of which fold into its weights.

    x_0 = e Embed(t)      x' = x + r Attn(n1(x))      x'' = x' + r FFN(n2(x'))      logits = Head(n(x)) / s
    attention = softmax(a q k^T)

With y = x / r the stream needs no multiplier: y_0 = (e / r) Embed(t), y' = y + Attn(n1(y)). A norm of y is that of x
if its epsilon is divided by r^2. The final norm takes 1 / s; queries take a sqrt(d), since Llama divides by sqrt(d).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import llama, llama_shaped
from ffn_fusion.families.family import Family
from ffn_fusion.families.fields import block_count, flag, number, whole
from ffn_fusion.families.llama_shaped import NAMES
from ffn_fusion.families.rewriting import Piece, Rewriting, without

_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def rewrite(config: Mapping[str, Any]) -> Rewriting:
    """The Llama that the model is.

    Raises:
        CheckpointError: a multiplier is zero or no number.
    """
    embedding, residual, attention, logits = (_multiplier(config, key) for key in _MULTIPLIERS)
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    head_dim = whole(config, "head_dim", hidden // heads)
    outer = {
        NAMES.embedding: Piece(NAMES.embedding, factor=embedding / residual),
        NAMES.final_norm: Piece(NAMES.final_norm, factor=1 / logits),
    }
    if flag(config, "tie_word_embeddings"):  # the head keeps what is stored, the embedding doesn't
        outer[NAMES.head] = Piece(NAMES.embedding)
    queries = dict(_queries(block_count(config), attention * head_dim**0.5, flag(config, "attention_bias")))
    rewritten = {
        **without(config, *_MULTIPLIERS),
        "rms_norm_eps": number(config, "rms_norm_eps", 1e-6) / residual**2,
        "tie_word_embeddings": False,
    }
    return Rewriting(rewritten, outer | queries)


def _queries(blocks: int, factor: float, bias: bool) -> Iterator[tuple[str, Piece]]:
    for block in range(blocks):
        for key in ("attention.q", "attention.q.bias")[: 2 if bias else 1]:
            name = NAMES.of(block, key)
            yield name, Piece(name, factor=factor)


def _multiplier(config: Mapping[str, Any], key: str) -> float:
    value = number(config, key, 1.0)
    if not value:
        raise CheckpointError(f"config.json: {key} is 0", "correct the config")
    return value


FAMILY = Family("granite", llama.read, NAMES, llama_shaped.tensors, rewrite=rewrite)
