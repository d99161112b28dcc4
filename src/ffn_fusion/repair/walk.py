"""The walk: parent and child side by side, block by block; at each place the FFN's output projection is solved anew.

With X the child's own state behind the attention (all earlier repairs in it), H [N, F] the FFN's activations on it and
Y the parent's state at the depth where the child's block ends:

    W = argmin  sum_t w_t |h_t W^T - (y_t - x_t)|^2 + lambda s |W - W0|^2

Each model's weights are read once, and only as far as the last place. Before the first place both share one state.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blockwise import MemoryStates, Stack, States
from ffn_fusion.blockwise.stack import Block, ReadAhead
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.processes import current
from ffn_fusion.repair.places import Place, places
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.surgery.normal_equations import NormalEquations
from ffn_fusion.surgery.ridge import solve_path
from ffn_fusion.surgery.ridge_choice import Fit
from ffn_fusion.surgery.token_weights import median_norm, token_weights

_SLOT = ("", 0)


@dataclass(frozen=True)
class PlaceRepair:
    """What was found at one place; ``weight`` is the new down projection [D, F], None where the old one stays."""

    place: Place
    width: int
    fit: Fit
    weight: Tensor | None


@torch.inference_mode()
def walk(
    parent: Stack,
    child: Stack,
    blueprint: Blueprint,
    ids_NT: Tensor,
    held: int,
    settings: RepairSettings,
    *,
    rows: int = 2048,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[PlaceRepair]:
    """Repair place after place; yields each as it's found.

    Args:
        child: of the unrepaired child (``Child``), unpadded.
        ids_NT: this process's windows. held: those from here on aren't fitted, and decide.
        on_progress: called with (block evaluations of both models done, in all).
    """
    todo = {place.block: place for place in places(blueprint, settings.horizon)}
    if not todo:
        return
    kept = blueprint.kept_blocks
    first, end = min(todo), max(todo)
    parts = [*_slices(0, held, rows // ids_NT.shape[1]), *_slices(held, len(ids_NT), rows // ids_NT.shape[1])]
    theirs, ours = MemoryStates(len(ids_NT)), MemoryStates(len(ids_NT))
    for part in parts:
        theirs.write(_SLOT, part, parent.embed(ids_NT[part]))
    theirs.turn()
    depth = kept[end].parent_blocks[1] + 1
    total, done = depth + (end - first + 1) + len(todo), 0
    parents, children = ReadAhead(parent, range(depth)), ReadAhead(child, range(first, end + 1))
    for k in range(end + 1):
        if k == first:
            for part in parts:
                ours.write(_SLOT, part, theirs.read(_SLOT, part))
            ours.turn()
        for i in range(kept[k].parent_blocks[0], kept[k].parent_blocks[1] + 1):
            _advance(theirs, parts, parents.take(i))
            done += 1
            on_progress(done, total)
        if k < first:
            continue
        block = children.take(k)
        if k in todo:
            found = _repaired(ours, theirs, parts, held, block, todo[k], settings)
            if found.weight is not None:
                block.down_projection.copy_(found.weight)
            done += 1
            yield found
        _advance(ours, parts, block)
        done += 1
        on_progress(done, total)


def _repaired(
    ours: States,
    theirs: States,
    parts: Sequence[slice],
    held: int,
    block: Block,
    place: Place,
    settings: RepairSettings,
) -> PlaceRepair:
    hidden, width = block.down_projection.shape
    device = block.down_projection.device
    fit, held_out = (NormalEquations(width, hidden, device=device) for _ in range(2))
    median = _median([median_norm(theirs.read(_SLOT, part).flatten(0, 1)) for part in parts])
    for part in parts:
        x = ours.read(_SLOT, part)
        x = x + block.attention(x)
        goal = theirs.read(_SLOT, part)
        inner = block.ffn_inner(x)
        residual = goal - x - block.ffn_outer(inner)
        weights = token_weights(goal.flatten(0, 1), settings.weighting, median=median)
        (fit if part.start < held else held_out).add(inner.flatten(0, 1), residual.flatten(0, 1), weights)
    found = solve_path(_summed(fit), settings.lambdas, _summed(held_out))
    if found.change_DF is None:
        return PlaceRepair(place, width, found, None)
    return PlaceRepair(place, width, found, block.down_projection + found.change_DF.to(block.down_projection))


def _summed(mine: NormalEquations) -> NormalEquations:
    """Of all processes, in their order: the same on each of them, and so is what they solve."""
    total, *others = current().gather([mine])
    for other in others:
        total.merge(other)
    return total


def _median(norms: Sequence[float]) -> float:
    """Of the chunks of all processes."""
    return statistics.median(current().gather(list(norms)))


def _advance(states: States, parts: Sequence[slice], block: Block) -> None:
    for part in parts:
        x = states.read(_SLOT, part)
        added = block.contributions(x)
        states.write(_SLOT, part, x + added.attention + added.ffn)
    states.turn()


def _slices(start: int, stop: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(k, min(k + size, stop)) for k in range(start, stop, size)]
