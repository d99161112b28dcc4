"""Cosine distance that keeps its digits when two vectors hardly differ."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30


def unit(x: Tensor) -> Tensor:
    """Return x / |x| along the last dimension, in float32 or wider; zero stays zero."""
    x = x if x.dtype == torch.float64 else x.float()
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_TINY)
    return x / length


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos(a, b) along the last dimension: [..., D] twice -> [...].

    It is computed as |a/|a| - b/|b||^2 / 2, which is the same without subtracting two numbers that are nearly 1: with
    float32 states, a distance of 1e-6 would otherwise keep one digit at best.
    """
    return unit_distance(unit(a), unit(b))


def unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the same for vectors that are already of length 1."""
    length: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return length.square() / 2
