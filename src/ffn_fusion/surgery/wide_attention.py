"""Blocks side by side: the sum of n attentions on one shared input IS one attention with all their heads.

    sum_j softmax(q_j k_j^T / sqrt(d)) v_j Wo_j^T,   q_j = x Wq_j^T,  k_j = x Wk_j^T,  v_j = x Wv_j^T   (every head)

    Wq = [Wq_1; ...; Wq_n]   Wk, Wv the same   (rows, along heads)
    Wo = [Wo_1 ... Wo_n]                       (columns, along heads)

Every head attends by itself, and what the heads write to the residual stream is a sum anyway. Query heads share KV
heads in groups: head h reads KV head h // group. Where the sources' groups differ in size, a KV head of a larger group
is repeated, so that all have the size that divides them all. Norms fold as in a fused FFN: see ``surgery.fuse_ffn``.

With the FFNs of the blocks fused, the blocks are one block in two steps: Y = X + sum_j A_j(n_j X), then
Y + sum_j F_j(n_j Y). It's the pair form of layer parallelism (arXiv 2502.02790).
"""

from __future__ import annotations

from dataclasses import replace

from ffn_fusion.blueprint import WideAttention
from ffn_fusion.blueprint.kinds.wide import common_group
from ffn_fusion.families import AttentionSpec
from ffn_fusion.surgery.fuse_ffn import Concatenated, merged_join, merged_parallel
from ffn_fusion.surgery.joins import Join, Wanted

# ---- which tensor takes what


def wide_join(kind: WideAttention, wanted: Wanted) -> Join:
    """Matrices and biases of all sources; keys and values with as many query heads to a KV head."""
    join = merged_join(wanted, kind.norm)
    if wanted.tensor.along != "KV heads":
        return join
    assert isinstance(join, Concatenated)
    attentions = [attention for attention in wanted.had if isinstance(attention, AttentionSpec)]
    group = common_group(attentions)
    kv_heads = sum(attention.heads for attention in attentions) // group
    repeats = tuple(attention.heads // attention.kv_heads // group for attention in attentions)
    return replace(join, repeats=repeats, head_dim=wanted.tensor.shape[0] // kv_heads)


def wide_parallel(kind: WideAttention, wanted: Wanted, at: int, rounded: bool) -> Join | None:
    """What stands for a tensor of attention ``at`` where nothing is merged; see ``transforms.Transform``."""
    return merged_parallel(wanted, kind.norm, at, rounded)
