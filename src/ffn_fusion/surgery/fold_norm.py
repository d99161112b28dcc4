"""Fold an RMSNorm's scale into the matrix behind it, so that several FFNs can share one norm without a scale.

n(x) = x / rms(x) * s      =>      n(x) W^T = (x / rms(x)) (W diag(s))^T
"""

from __future__ import annotations

from torch import Tensor


def fold_norm(weight_FD: Tensor, scale_D: Tensor) -> Tensor:
    """W diag(s), rounded once to the dtype of W: torch multiplies 16-bit numbers in float32."""
    return (weight_FD * scale_D).to(weight_FD.dtype)
