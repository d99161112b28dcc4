"""The same ridge regression for layers so wide that G [F, F] fits nowhere: tokens pass by, and G is never formed.

    (G + lambda s I) V  =  sum over chunks of H^T (w * (H V))  +  lambda s V

4 N F D operations a pass and a handful of [F, D] blocks in memory, against N F^2 once and three [F, F] matrices. The
path goes from the largest lambda, which takes the fewest passes, to the smallest, each beginning where the last one
ended, and stops where the held-out error rises.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.surgery.conjugate_gradients import Operator, Solved, conjugate_gradients
from ffn_fusion.surgery.normal_equations import scale_rows
from ffn_fusion.surgery.ridge import ridge_vector, split
from ffn_fusion.surgery.ridge_choice import Fit, PathPoint, Tokens, better, descending, relative, why_none, why_not

# H [N, F], R [N, D] and w [N] (None: 1 each) of a chunk of tokens. Called once a pass: the same tokens every time.
Chunks = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor | None]]]
AddUp = Callable[..., None]


def alone(*tensors: Tensor) -> None:
    """Sums over the only process."""


def stream_operator(
    chunks: Callable[[], Iterable[tuple[Tensor, Tensor | None]]], ridge: float | Tensor, add_up: AddUp = alone
) -> Operator:
    """V [F, D] -> (G + ridge) V, from chunks of H [N, F] and w [N] (None: 1 each), all of them finite.

    Args:
        chunks: called for every product. A chunk is multiplied in its dtype (float32 for 16-bit numbers) and added
            in V's.
        ridge: lambda s, or the diagonal [F].
        add_up: sums tensors over all processes, in place; each has chunks of its own.
    """

    def apply(v_FD: Tensor) -> Tensor:
        out = torch.zeros_like(v_FD)
        for h, w in chunks():
            h = h.to(_dtype(h))
            image = h @ v_FD.to(h)
            out += h.mT @ (image if w is None else image * w.to(h)[:, None])
        add_up(out)
        return out.add_(v_FD * (ridge[:, None].to(v_FD) if isinstance(ridge, Tensor) else ridge))

    return apply


def solve_streamed(
    chunks_fit: Chunks,
    chunks_held_out: Chunks,
    ridges: Sequence[float],
    *,
    bias: bool = False,
    refit: bool = True,
    tolerance: float = 1e-5,
    max_steps: int = 100,
    dtype: torch.dtype = torch.float32,
    add_up: AddUp = alone,
    columns: int | None = None,
) -> Fit:
    """``ridge.solve_path`` without G; a lambda that didn't converge is judged by its held-out error like any other.

    Args:
        chunks_fit: the tokens to fit.
        chunks_held_out: other tokens.
        ridges: lambdas >= 0, in any order.
        bias: the regression has a constant term.
        refit: go on at the chosen lambda with both sets of tokens.
        tolerance: of the worst column's residual.
        max_steps: passes over the tokens for one lambda.
        add_up: sums tensors over all processes, in place; each has chunks of its own, and all find the same.
        dtype: of the [F, D] blocks of the iteration, about ten at a time. Float32 gets to the default tolerance,
            float64 beyond it.
        columns: output channels that are solved at a time, where [F, D] blocks are too large; default: all. Lambda is
            then chosen on as many channels, taken evenly; any group that doesn't gain on held-out tokens keeps W0.

    Returns:
        Its ``path`` ends at the first lambda whose held-out error is above its predecessor's.

    Raises:
        ValueError: no lambda, or a negative one.
    """
    ridges = descending(ridges)
    if columns is not None:
        how = {"bias": bias, "tolerance": tolerance, "max_steps": max_steps, "dtype": dtype, "add_up": add_up}
        return _solve_in_groups(chunks_fit, chunks_held_out, ridges, columns, refit=refit, **how)
    fit, held_out = _Stream(chunks_fit, bias, add_up), _Stream(chunks_held_out, bias, add_up)
    refusal = why_not(fit.width, fit.tokens, held_out.tokens)
    if refusal is not None:
        return Fit(reason=refusal)

    path: list[PathPoint] = []
    chosen: PathPoint | None = None
    best: Solved | None = None
    solved: Solved | None = None
    last = math.inf
    for ridge in ridges:
        solved = _solve([fit], ridge, solved, tolerance, max_steps, dtype)
        if not bool(solved.x_FD.isfinite().all()):  # nothing to begin the next one at
            path.append(PathPoint(ridge))
            break
        error = relative(held_out.error(solved.x_FD), held_out.energy)
        point = PathPoint(ridge, relative(fit.error_of(solved, ridge), fit.energy), error, _worst(solved))
        path.append(point)
        if better(point, chosen):
            chosen, best = point, solved
        if error > last:
            break
        last = error
    if chosen is None or best is None:
        return Fit(path=tuple(path), reason=why_none(path))

    again = _solve([fit, held_out], chosen.ridge, best, tolerance, max_steps, dtype) if refit else None
    if again is not None and not bool(again.x_FD.isfinite().all()):
        again = None
    final = best if again is None else again
    change, offset = split(final.x_FD.to(fit.dtype), bias)
    return Fit(chosen.ridge, change, offset, tuple(path), _worst(final), refitted=again is not None)


def _solve_in_groups(
    chunks_fit: Chunks, chunks_held_out: Chunks, ridges: Sequence[float], columns: int, *, refit: bool, **how: Any
) -> Fit:
    """A group of output channels after another; each is a regression of its own, with the same H."""
    shape = next(iter(chunks_fit()))
    F, D = shape[0].shape[1], shape[1].shape[1]

    def solve(chosen: slice, ridges: Sequence[float], refit: bool) -> Fit:
        fit, held_out = _some_columns(chunks_fit, chosen), _some_columns(chunks_held_out, chosen)
        return solve_streamed(fit, held_out, ridges, refit=refit, **how)

    probe = solve(slice(0, D, -(-D // min(columns, D))), ridges, False)
    if probe.ridge is None:
        return probe
    change = torch.zeros(D, F)
    offset = torch.zeros(D) if how["bias"] else None
    residual = 0.0
    for start in range(0, D, columns):
        group = slice(start, min(start + columns, D))
        found = solve(group, [probe.ridge], refit)
        if found.change_DF is None:
            continue
        change[group] = found.change_DF.cpu()
        if offset is not None and found.bias_D is not None:
            offset[group] = found.bias_D.cpu()
        residual = max(residual, found.residual or 0.0)
    return Fit(probe.ridge, change, offset, probe.path, residual, refitted=refit)


def _some_columns(chunks: Chunks, chosen: slice) -> Chunks:
    """The same tokens with only these output channels."""

    def some() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for h, r, w in chunks():
            yield h, r[:, chosen], w

    return some


class _Stream:
    """Tokens that pass by: what one pass says of them, and what every later pass yields."""

    def __init__(self, chunks: Chunks, bias: bool, add_up: AddUp) -> None:
        self._chunks, self.bias, self.add_up = chunks, bias, add_up
        self.width: int | None = None  # of H without the bias's column; None: no chunk at all
        self.dtype = torch.float32
        count = dropped = 0
        self.diagonal = self.cross = torch.zeros(0, dtype=torch.float64)
        energy = torch.zeros((), dtype=torch.float64)
        for h, r, w in chunks():
            if self.width is None:
                self.width, self.dtype = h.shape[1], _dtype(h)
                self.diagonal = torch.zeros(self.width + bias, dtype=torch.float64, device=h.device)
                self.cross = torch.zeros(self.width + bias, r.shape[1], dtype=torch.float64, device=h.device)
                energy = energy.to(h.device)
            scaled, residual, root = self._scale(h, r, w)
            count += int((root > 0).sum())
            dropped += len(h) - len(scaled)
            self.diagonal += scaled.double().square().sum(0)
            self.cross += scaled.mT @ residual
            energy += residual.double().square().sum()
        counts = torch.tensor([count, dropped])
        add_up(self.diagonal, self.cross, energy, counts)
        count, dropped = (int(part) for part in counts)
        self.energy = float(energy)
        finite = all(bool(part.isfinite().all()) for part in (self.diagonal, self.cross, energy))
        self.tokens = Tokens(count, dropped, finite)

    def activations(self) -> Iterator[tuple[Tensor, None]]:
        """H of every chunk, scaled by the roots of the weights."""
        for h, r, w in self._chunks():
            yield self._scale(h, r, w)[0], None

    def error(self, x_FD: Tensor) -> float:
        """sum_t w_t |r_t - h_t X|^2, in one pass."""
        error = torch.zeros((), dtype=torch.float64, device=x_FD.device)
        for h, r, w in self._chunks():
            scaled, residual, _ = self._scale(h, r, w)
            error += (residual - scaled @ x_FD.to(scaled)).double().square().sum()
        self.add_up(error)
        return float(error) if error.isfinite() else math.inf

    def error_of(self, solved: Solved, ridge: float) -> float:
        """The same without a pass, of the solution for this stream: G X is C less what is left and the ridge's part."""
        x, left = solved.x_FD.double(), solved.left_FD.double()
        explained = (x * (self.cross + left + self.ridge_vector(ridge)[:, None] * x)).sum()
        return max(0.0, self.energy - float(explained))

    def ridge_vector(self, ridge: float) -> Tensor:
        """lambda s for every channel, 0 for the bias."""
        return ridge_vector(ridge, self.diagonal[: self.width], self.bias)

    def _scale(self, h: Tensor, r: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scaled, residual, root = scale_rows(h, r, w, _dtype(h))
        return torch.cat([scaled, root[:, None]], 1) if self.bias else scaled, residual, root


def _solve(
    streams: Sequence[_Stream], ridge: float, start: Solved | None, tolerance: float, max_steps: int, dtype: torch.dtype
) -> Solved:
    """One lambda on the tokens of all streams."""
    diagonal = torch.stack([stream.diagonal for stream in streams]).sum(0)
    cross = torch.stack([stream.cross for stream in streams]).sum(0)
    ridge_F = ridge_vector(ridge, diagonal[: streams[0].width], streams[0].bias)
    return conjugate_gradients(
        stream_operator(
            lambda: itertools.chain.from_iterable(s.activations() for s in streams), ridge_F, streams[0].add_up
        ),
        cross.to(dtype),
        preconditioner_F=diagonal + ridge_F,
        tolerance=tolerance,
        max_steps=max_steps,
        start_FD=None if start is None else start.x_FD,
    )


def _worst(solved: Solved) -> float:
    return float(solved.residual_D.max())


def _dtype(h: Tensor) -> torch.dtype:
    return torch.float64 if h.dtype == torch.float64 else torch.float32


def solve_streamed_bytes(width: int, columns: int, hidden: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory of ``solve_streamed`` in bytes, its chunks aside: the iteration's [F, columns] blocks with C in float64,
    and what was found.
    """
    return width * columns * (12 * dtype.itemsize + 2 * 8) + width * hidden * 2 * dtype.itemsize
