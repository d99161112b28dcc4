"""Small random regressions, and numpy's answer to them in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.solve.normal_equations import NormalEquations


@dataclass(frozen=True)
class Problem:
    """H [N, F], R [N, D] and w [N], in float64."""

    h: Tensor
    r: Tensor
    w: Tensor

    def sums(self, *, bias: bool = False, dtype: torch.dtype = torch.float64, weighted: bool = True) -> NormalEquations:
        sums = NormalEquations(self.h.shape[1], self.r.shape[1], bias=bias, dtype=dtype)
        sums.add(self.h, self.r, self.w if weighted else None)
        return sums

    def error(self, change: Tensor, bias: Tensor | None = None) -> float:
        left = self.r - self.h @ change.double().mT - (0.0 if bias is None else bias.double())
        return float((self.w * left.square().sum(1)).sum())

    def part(self, first: int, last: int | None = None) -> Problem:
        return Problem(self.h[first:last], self.r[first:last], self.w[first:last])


def problem(
    n: int, f: int, d: int, seed: int = 0, noise: float = 0.5, zeros: float = 0.0, shift: float = 0.0
) -> Problem:
    """R = H X + noise + shift with channels of different size; a share of the weights is 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    h = normal(n, f) * torch.logspace(-1, 1, f, dtype=torch.float64)
    r = h @ normal(f, d) / max(f, 1) ** 0.5 + noise * normal(n, d) + shift
    w = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    w[torch.rand(n, generator=generator) < zeros] = 0
    return Problem(h, r, w)


def numpy_ridge(p: Problem, ridge: float, *, bias: bool = False) -> Tensor:
    """dW^T (with the bias as last row): least squares with a row of sqrt(lambda s) for every channel."""
    h = torch.cat([p.h, torch.ones(len(p.h), 1, dtype=torch.float64)], 1) if bias else p.h
    root = p.w.sqrt()[:, None]
    s = float((p.w[:, None] * p.h.square()).sum(0).mean())
    penalty = torch.eye(h.shape[1], dtype=torch.float64)[: p.h.shape[1]] * (ridge * s) ** 0.5
    rows = torch.cat([h * root, penalty]).numpy()
    right = torch.cat([p.r * root, torch.zeros(len(penalty), p.r.shape[1], dtype=torch.float64)]).numpy()
    return torch.from_numpy(np.linalg.lstsq(rows, right, rcond=None)[0])


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300))


def spd(size: int, condition: float, seed: int = 0) -> Tensor:
    """Symmetric, eigenvalues from 1 down to 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    a = q * torch.logspace(0, -float(torch.tensor(condition).log10()), size, dtype=torch.float64) @ q.mT
    return (a + a.mT) / 2
