"""Fold an RMSNorm's scale into the matrix behind it, so that several FFNs can share one norm without a scale.

n(x) = x / rms(x) * s      =>      n(x) W^T = (x / rms(x)) (W diag(s))^T
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold_norm(weight_FD: Tensor, scale_D: Tensor) -> Tensor:
    """W diag(s), multiplied in at least float32 and rounded once, to the dtype of W."""
    wide = torch.float64 if weight_FD.dtype == torch.float64 else torch.float32
    return (weight_FD.to(wide) * scale_D.to(wide)).to(weight_FD.dtype)
