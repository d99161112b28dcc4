"""Solve one place: gather what its projection reads and what is missing there, and solve in the way that fits.

residual  r_t = y_t - x_t - h_t W0^T - b0        x the child's state before the sub-block, y the teacher's behind it
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blockwise import States
from ffn_fusion.blockwise.stack import Block
from ffn_fusion.processes import current
from ffn_fusion.repair.places import Place
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.surgery.normal_equations import NormalEquations
from ffn_fusion.surgery.ridge import solve_path
from ffn_fusion.surgery.ridge_choice import Fit
from ffn_fusion.surgery.ridge_streamed import solve_streamed
from ffn_fusion.surgery.token_weights import median_norm, token_weights

SLOT = ("", 0)


@dataclass(frozen=True)
class Windows:
    """This process's windows, a few at a time: those that are fitted, and those that decide."""

    fitted: Sequence[slice]
    deciding: Sequence[slice]

    @property
    def parts(self) -> list[slice]:
        return [*self.fitted, *self.deciding]


def solve_place(
    place: Place,
    block: Block,
    ours: States,
    theirs: States,
    windows: Windows,
    settings: RepairSettings,
    *,
    columns: int | None = None,
) -> Fit:
    """The change of a place's projection, and how much is left on windows that weren't fitted.

    Args:
        block: the child's, with the projection as it is.
        ours: the child's state before the sub-block. theirs: the teacher's behind it.
        columns: None: width^2 numbers are factorised; else tokens pass by many times, for so many output channels at a
            time.
    """
    bias = settings.bias and block.projection(place.part).bias is not None
    tokens = _Tokens(place, block, ours, theirs, settings.weighting, _median(theirs, windows.parts))
    if columns is not None:
        hidden = block.projection(place.part).weight.shape[0]
        return solve_streamed(
            lambda: tokens.of(windows.fitted),
            lambda: tokens.of(windows.deciding),
            settings.lambdas,
            bias=bias,
            add_up=current().add_up,
            columns=columns if columns < hidden else None,
        )
    hidden, width = block.projection(place.part).weight.shape
    device = block.projection(place.part).weight.device
    sums = []
    for parts in (windows.fitted, windows.deciding):
        added = NormalEquations(width, hidden, bias=bias, device=device)
        for chunk in tokens.of(parts):
            added.add(*chunk)
        added.sum_over(current().add_up)
        sums.append(added)
    return solve_path(sums[0], settings.lambdas, sums[1])


@dataclass(frozen=True)
class _Tokens:
    place: Place
    block: Block
    ours: States
    theirs: States
    weighting: str
    median: float

    def of(self, parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Activations [N, F], residuals [N, D] and weights [N] of some windows at a time; none at least once."""
        for part in parts or [slice(0, 0)]:
            x, goal = self.ours.read(SLOT, part), self.theirs.read(SLOT, part)
            inner, outer = self.block.inner_and_outer(self.place.part, x)
            weights = token_weights(goal.flatten(0, 1), self.weighting, median=self.median)  # type: ignore[arg-type]
            yield inner.flatten(0, 1), (goal - x - outer).flatten(0, 1), weights


def _median(theirs: States, parts: Sequence[slice]) -> float:
    """Of the chunks' medians, over all processes."""
    norms = [median_norm(theirs.read(SLOT, part).flatten(0, 1)) for part in parts]
    return statistics.median(current().gather(norms))


@torch.inference_mode()
def take_change(place: Place, block: Block, fit: Fit, stored: torch.dtype) -> dict[str, Tensor]:
    """Put what was found into the block, rounded as it will be stored.

    Returns:
        The child's new tensors by their names; none where the old ones stay.
    """
    if fit.change_DF is None:
        return {}
    projection = block.projection(place.part)
    new = {"weight": projection.weight + fit.change_DF.to(projection.weight)}
    if fit.bias_D is not None:
        new["bias"] = projection.bias + fit.bias_D.to(projection.bias)
    found = {}
    for name, value in new.items():
        rounded = value.to(stored)
        getattr(projection, name).data.copy_(rounded)
        found[f"{place.module}.{name}"] = rounded.cpu()
    return found
