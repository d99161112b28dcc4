"""The RMSNorm that some families put a sub-block's output through before it is added to the state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class NormAfter:
    """m(z) = g z / rms(z), with rms(z) = sqrt(mean of z^2 + eps).

    Args:
        scale_D: g, as it multiplies.
    """

    scale_D: Tensor
    eps: float

    def rms(self, z: Tensor) -> Tensor:
        """[..., D] -> [..., 1]"""
        return (z.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, z: Tensor) -> Tensor:
        """[..., D] -> [..., D]"""
        return self.scale_D * (z / self.rms(z))
