"""Solve one place: gather what its projection reads and what is missing there, and solve in the form that fits.

residual  r_t = y_t - x_t - h_t W0^T - b0      x the child's state before the sub-block, y the teacher's state after it

Where a norm follows the projection, ``repair.after_norm`` says what becomes of both.

Several processes split the sums of each form: the primal by tokens (each process has windows of its own), the dual by
channels (each process has all tokens and some of the channels).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from ffn_fusion.blockwise.stack import Block
from ffn_fusion.blockwise.states import States
from ffn_fusion.processes import current
from ffn_fusion.repair.after_norm import AfterNorm
from ffn_fusion.repair.places import Place
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.solve.choice import Fit
from ffn_fusion.solve.dual import solve_dual
from ffn_fusion.solve.normal_equations import NormalEquations, add_product, mirror
from ffn_fusion.solve.primal import solve_primal
from ffn_fusion.solve.token_weights import median_norm, token_weights

SLOT = ("", 0)
CHANNELS = 2048
"""Channels of a place that are computed for all tokens at a time, where it is solved by the dual."""


@dataclass(frozen=True)
class Windows:
    """The windows of this process, a few at a time: those that are fitted, and those that decide."""

    fitted: Sequence[slice]
    deciding: Sequence[slice]

    @property
    def parts(self) -> list[slice]:
        return [*self.fitted, *self.deciding]


@dataclass(frozen=True)
class _Work:
    """One place, with the states of both models there; see ``solve_place``."""

    place: Place
    block: Block
    ours: States
    theirs: States
    windows: Windows
    settings: RepairSettings

    @property
    def bias(self) -> bool:
        return self.settings.bias and self.block.projection(self.place.part).bias is not None

    @property
    def sums(self) -> torch.dtype:
        """The dtype of sums over tokens or channels: float32, or float64 if the model is."""
        weight = self.block.projection(self.place.part).weight
        return torch.float64 if weight.dtype == torch.float64 else torch.float32

    @cached_property
    def after(self) -> AfterNorm | None:
        """What the norm after the projection makes of the regression; None: there's no norm."""
        norm = self.block.norm_after(self.place.part)
        return AfterNorm(norm) if norm else None

    def beside(self, x_NTD: Tensor) -> Tensor:
        """What the sub-block's contribution is added to: x, and where attention and FFN stand side by side both."""
        if self.place.part == "attention" or not self.block.side_by_side:
            return x_NTD
        return torch.cat([x + self.block.attention(x) for x in torch.split(x_NTD, 1)])

    def weights(self, goal_ND: Tensor, median: float) -> Tensor:
        return token_weights(goal_ND, self.settings.weighting, median=median)

    def median(self) -> float:
        """Return the median norm of the teacher's states: the median over chunks and processes of their medians."""
        norms = [median_norm(self.theirs.read(SLOT, part).flatten(0, 1)) for part in self.windows.parts]
        return statistics.median(current().gather(norms))


def error_left(
    place: Place, block: Block, ours: States, theirs: States, windows: Windows, settings: RepairSettings
) -> float:
    """Return the weighted squared distance to the goal on the windows that decide, with the block as it is."""
    work = _Work(place, block, ours, theirs, windows, settings)
    median, error = work.median(), 0.0
    for part in windows.deciding:
        x, goal = ours.read(SLOT, part), theirs.read(SLOT, part)
        _, outer = block.inner_and_outer(place.part, x)
        missing = (goal - work.beside(x) - outer).flatten(0, 1).double()
        weights = work.weights(goal.flatten(0, 1), median).double()
        error += float((weights * missing.square().sum(-1)).nan_to_num(0.0).sum())
    return sum(current().gather([error]))


def solve_place(
    place: Place,
    block: Block,
    ours: States,
    theirs: States,
    windows: Windows,
    settings: RepairSettings,
    *,
    dual: bool = False,
) -> Fit:
    """Find the change of a place's projection, and the error that is left on windows that weren't fitted.

    Args:
        block: the child's block, with the projection as it is.
        ours: the child's states before the sub-block.
        theirs: the teacher's states after it.
        dual: solve with (number of tokens)^2 numbers; otherwise with (width)^2.
    """
    work = _Work(place, block, ours, theirs, windows, settings)
    return _solve_dual(work) if dual else _solve_primal(work)


def _solve_primal(work: _Work) -> Fit:
    weight = work.block.projection(work.place.part).weight
    hidden, width = weight.shape
    median = work.median()
    sums = []
    for parts in (work.windows.fitted, work.windows.deciding):
        added = NormalEquations(width, hidden, bias=work.bias, dtype=work.sums, device=weight.device)
        for part in parts:
            x, goal = work.ours.read(SLOT, part), work.theirs.read(SLOT, part)
            inner, outer = work.block.inner_and_outer(work.place.part, x)
            missing = (goal - work.beside(x) - outer).flatten(0, 1)
            inner, weights = inner.flatten(0, 1), work.weights(goal.flatten(0, 1), median)
            if work.after:
                missing, weights = work.after.regression(
                    missing, weights, work.block.projection(work.place.part)(inner)
                )
            added.add(inner, missing, weights)
        added.sum_over(current().add_up)
        sums.append(added)
    if not work.after:
        return solve_primal(sums[0], work.settings.lambdas, sums[1])
    error = partial(_error_after_norm, work, work.after, median)
    return work.after.of_projection(solve_primal(sums[0], work.settings.lambdas, sums[1], held_out_error=error))


def _error_after_norm(work: _Work, after: AfterNorm, median: float, x_FD: Tensor) -> float:
    """The error on the windows that decide, for X^T with the bias as last row: see ``repair.after_norm``."""
    projection = work.block.projection(work.place.part)
    x_FD = x_FD.to(work.sums)
    left = torch.zeros((), dtype=torch.float64, device=x_FD.device)
    for part in work.windows.deciding:
        x, goal = work.ours.read(SLOT, part), work.theirs.read(SLOT, part)
        inner = work.block.inner_and_outer(work.place.part, x)[0].flatten(0, 1)
        outer, wanted = projection(inner), (goal - work.beside(x)).flatten(0, 1)
        weights = work.weights(goal.flatten(0, 1), median)
        usable = inner.isfinite().all(1) & outer.isfinite().all(1) & wanted.isfinite().all(1)
        added = inner.to(x_FD) @ x_FD[: inner.shape[1]]
        if work.bias:
            added += x_FD[-1]
        left += after.error(outer, wanted, torch.where(usable, weights, 0.0), added)
    current().add_up(left)
    return float(left) if left.isfinite() else math.inf


@torch.inference_mode()
def _solve_dual(work: _Work) -> Fit:
    here = current()
    projection = work.block.projection(work.place.part)
    hidden, width = projection.weight.shape
    median = work.median()
    (x, fitted), (goal, _) = (_of_all_processes(states, work.windows) for states in (work.ours, work.theirs))
    tokens = x.shape[0] * x.shape[1]
    kernel = x.new_zeros(tokens, tokens, dtype=work.sums)
    outer = x.new_zeros(tokens, hidden, dtype=work.sums)
    for channels in _channels(width):
        inner = _inner(work, x, channels)
        add_product(kernel, inner.mT.to(kernel))
        outer += inner @ projection.weight[:, channels].mT
    here.add_up(kernel, outer)
    mirror(kernel)
    goal_ND, count = goal.flatten(0, 1), fitted * x.shape[1]
    wanted, weights = (goal_ND - work.beside(x).flatten(0, 1)).to(outer), work.weights(goal_ND, median)
    residual, error = wanted - outer, None
    if projection.bias is not None:
        residual -= projection.bias
    if work.after:
        outer += 0.0 if projection.bias is None else projection.bias
        residual = wanted - work.after.norm(outer)
        usable = torch.where(residual.isfinite().all(1), weights, 0.0)
        error = partial(work.after.error, outer[count:], wanted[count:], usable[count:])
        residual, weights = work.after.regression(residual, weights, outer)
    found = solve_dual(
        kernel, residual, weights, width, count, work.settings.lambdas, bias=work.bias, held_out_error=error
    )
    found = work.after.of_projection(found) if work.after else found
    if found.dual_ND is None:
        return found
    change = found.dual_ND.new_zeros(hidden, width)
    for channels in _channels(width):
        inner = _inner(work, x, channels).to(change)
        # tokens that aren't finite have a row of zeros in the dual, and zero times infinity would be NaN
        change[:, channels] = found.dual_ND.mT @ inner.nan_to_num(0.0, 0.0, 0.0)
    here.add_up(change)
    return replace(found, change_DF=change, dual_ND=None)


def _channels(width: int) -> list[slice]:
    """Return this process's channels, some at a time."""
    here = current()
    return [slice(start, min(start + CHANNELS, width)) for start in range(0, width, CHANNELS)][here.rank :: here.world]


def _inner(work: _Work, x_NTD: Tensor, channels: slice) -> Tensor:
    """Return what the projection reads in some channels: [N * T, C]."""
    rows = max((part.stop - part.start for part in work.windows.parts), default=1)
    found = [work.block.inner(work.place.part, some, channels).flatten(0, 1) for some in torch.split(x_NTD, rows)]
    return torch.cat(found)


def _of_all_processes(states: States, windows: Windows) -> tuple[Tensor, int]:
    """Return the states [N, T, D] of all processes, the fitted windows first, and the number of those."""
    here = current()
    found: list[Tensor] = []
    for parts in (windows.fitted, windows.deciding):
        mine = torch.cat([states.read(SLOT, part) for part in parts or [slice(0, 0)]])
        counts = here.gather([len(mine)])
        start = sum(counts[: here.rank])
        everyone = mine.new_zeros(sum(counts), *mine.shape[1:])
        everyone[start : start + len(mine)] = mine
        found.append(everyone)
    here.add_up(*found)
    return torch.cat(found), len(found[0])


@torch.inference_mode()
def take_change(place: Place, block: Block, fit: Fit, stored: Callable[[str], torch.dtype]) -> dict[str, Tensor]:
    """Apply what was found to the block, rounded to the dtype in which the child stores each tensor.

    Args:
        stored: (name) -> the dtype in which the child stores that tensor.

    Returns:
        The child's new tensors by name; empty if the old ones stay.
    """
    if fit.change_DF is None:
        return {}
    projection = block.projection(place.part)
    new: dict[Literal["weight", "bias"], Tensor] = {"weight": projection.weight + fit.change_DF.to(projection.weight)}
    if fit.bias_D is not None:
        new["bias"] = projection.bias + fit.bias_D.to(projection.bias)
    found, names = {}, block.output_names(place.part)
    for what, value in new.items():
        rounded = value.to(stored(names["weight"]))
        getattr(projection, what).data.copy_(rounded)
        found[names[what]] = rounded.cpu()
    return found
