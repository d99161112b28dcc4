"""A narrower FFN: of the sum over channels that a gated FFN is, only some terms (Puzzle, arXiv 2411.19146).

    FFN(x) = sum_k h_k Wdown[:, k]          h_k = act(x Wgate[k]^T) (x Wup[k]^T)

Rows of gate and up (and of their biases) and columns of down go; down's bias stays. Which channels: those of the
largest contribution, the mean over calibration tokens of how far a channel moves the output,

    C_k = mean |h_k| * |Wdown[:, k]|_2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def narrow_rows(part: Tensor, channels: Sequence[int], begin: int = 0) -> Tensor:
    """Rows ``channels`` of gate or up [F, D] (or of a bias [F]); ``part`` may be a piece of it from row ``begin``."""
    return part.index_select(0, _index(channels, part) - begin)


def narrow_columns(down_DF: Tensor, channels: Sequence[int]) -> Tensor:
    """[D, F] -> [D, len(channels)]."""
    return down_DF.index_select(1, _index(channels, down_DF))


def channel_contribution(mean_F: Tensor, down_DF: Tensor) -> Tensor:
    """C [F], from the mean of |h| over tokens."""
    wide = torch.promote_types(down_DF.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(down_DF, dim=0, dtype=wide)
    return mean_F * lengths


def _index(channels: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(channels, dtype=torch.int64, device=like.device)
