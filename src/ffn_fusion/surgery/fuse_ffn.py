"""FFN Fusion: the sum of n gated FFNs on one shared input IS one gated FFN (arXiv 2503.18908, theorem 1).

    sum_j (act(x Wgate_j^T) * (x Wup_j^T)) Wdown_j^T  =  (act(x G^T) * (x U^T)) D^T
    G = [Wgate_1; ...; Wgate_n]   U = [Wup_1; ...; Wup_n]   (rows, along F)
    D = [Wdown_1 ... Wdown_n]                               (columns, along F)

Widths may differ. Zero channels behind (``padding``) add nothing: exact for any gate, since up is 0 there.
Biases: gate's and up's are concatenated like rows, down's are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse_rows(parts: Sequence[Tensor], padding: int = 0) -> Tensor:
    """[F_j, D] -> [sum F_j + padding, D] (or biases [F_j] -> [sum F_j + padding])."""
    if padding:
        parts = [*parts, parts[0].new_zeros(padding, *parts[0].shape[1:])]
    return torch.cat(list(parts), dim=0) if len(parts) > 1 else parts[0]


def fuse_columns(parts: Sequence[Tensor], padding: int = 0) -> Tensor:
    """[D, F_j] -> [D, sum F_j + padding]."""
    zeros = parts[0].new_zeros(parts[0].shape[0], padding)
    return torch.cat([*parts, zeros] if padding else list(parts), dim=1)


def add_biases(parts: Sequence[Tensor]) -> Tensor:
    """sum of [D], in at least float32."""
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    return torch.stack([part.to(wide) for part in parts]).sum(0).to(parts[0].dtype)
