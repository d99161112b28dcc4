"""The input side: what each FFN of a run reads, brought nearer to what it reads in the parent.

The FFNs of a fused run read one normalised state n(x); in the parent, FFN j reads that of a state z_j of its own. A
linear map from one to the other folds into the matrices that read it, gate and up, so it costs nothing at inference:

    A_j = argmin  sum_t |n(x_t) A^T - n(z_jt)|^2 + lambda s |A - I|^2          W_j <- W_j A_j

The same holds for the FFN of a block that lost its attention. Shapes: D hidden, F width of one FFN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Block
from ffn_fusion.blockwise.states import States
from ffn_fusion.blueprint import Block as Planned
from ffn_fusion.blueprint import Blueprint, FusedFfn
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.family import SubBlockTensor
from ffn_fusion.processes import current
from ffn_fusion.repair.fit import SLOT, Windows
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.solve.choice import Fit
from ffn_fusion.solve.normal_equations import NormalEquations
from ffn_fusion.solve.primal import solve_primal
from ffn_fusion.solve.token_weights import token_weights

Channels = Mapping[int, slice]
"""Parent block -> the channels of its FFN in the child's."""


def channels_to_map(blueprint: Blueprint, spec: ModelSpec) -> dict[int, Channels]:
    """Return, by child block, the FFNs whose inputs are mapped: of a fused run, or of a block without its attention.

    Not those after a wide attention, which is solved when the parent's FFNs have read their inputs, and not those that
    share the last one's norm.
    """
    found: dict[int, Channels] = {}
    for k, block in enumerate(blueprint.kept_blocks):
        begin, slices = 0, {}
        for source in _mapped(blueprint, block, spec):
            end = begin + spec.blocks[source].ffn_width
            slices[source] = slice(begin, end)
            begin = end
        if slices:
            found[k] = slices
    return found


def _mapped(blueprint: Blueprint, block: Planned, spec: ModelSpec) -> tuple[int, ...]:
    if spec.side_by_side or block.side_by_side or not block.ffn.present:
        return ()
    if isinstance(block.ffn, FusedFfn):
        return block.ffn.sources if block.ffn.norm == "own" else ()
    first, last = block.parent_blocks
    lost = any(blueprint.parent.blocks[i].attention for i in range(first, last + 1)) and not block.attention.present
    return block.ffn.sources if lost and not block.ffn.changes and spec.blocks[block.ffn.sources[0]].ffn_width else ()


@torch.inference_mode()
def solve_input(block: Block, ours: States, theirs: States, windows: Windows, settings: RepairSettings) -> Fit:
    """Find A - I for one FFN.

    Args:
        block: the child's, whose norm is used for both states.
        ours: the child's states before its FFN.
        theirs: the parent's states before FFN j.

    Returns:
        A fit whose ``change_DF`` is A - I [D, D]; without one where I is best on windows that weren't fitted.
    """
    sums = []
    for parts in (windows.fitted, windows.deciding):
        added: NormalEquations | None = None
        for part in parts or [slice(0, 0)]:
            here, there = (block.normed(states.read(SLOT, part)).flatten(0, 1) for states in (ours, theirs))
            if added is None:
                hidden, wide = here.shape[1], here.dtype == torch.float64
                dtype = torch.float64 if wide else torch.float32
                added = NormalEquations(hidden, hidden, dtype=dtype, device=here.device)
            added.add(here, there - here, token_weights(there, "none"))
        assert added is not None
        added.sum_over(current().add_up)
        sums.append(added)
    return solve_primal(sums[0], settings.lambdas, sums[1])


class InputMaps:
    """The maps of a walk: solved where the parent's FFN reads its input, kept, and put in where the child's is solved.

    Args:
        channels: see ``channels_to_map``.
        journal: where they are kept until then.
    """

    def __init__(self, channels: Mapping[int, Channels], journal: Journal) -> None:
        self._channels, self._journal = channels, journal
        self._before: list[tuple[Tensor, Tensor]] = []

    def save(self, source: int, fit: Fit) -> None:
        """Keep what was found for the FFN of a parent block."""
        nothing = torch.empty(0) if fit.change_DF is None else fit.change_DF
        tables = {"change": nothing.float().cpu().numpy(), "error": np.array(fit.held_out_error)}
        self._journal.save(f"input-{source}", tables)

    def put_in(self, block_number: int, block: Block, stored: Callable[[str], torch.dtype]) -> dict[str, Tensor]:
        """Fold the maps of a child block's FFN into the matrices that read the state.

        Args:
            stored: (name) -> the dtype in which the child stores that tensor.

        Returns:
            The child's new tensors by name; empty where there is no map.
        """
        self._before = [(weight, weight.clone()) for _, _, weight in block.into("ffn")]
        found: dict[str, Tensor] = {}
        for source, channels in self._channels.get(block_number, {}).items():
            tables = self._journal.load(f"input-{source}")
            assert tables is not None
            if tables["change"].size:
                found = fold_input(block, channels, torch.from_numpy(tables["change"]), stored)
        return found

    def swap(self) -> None:
        """Exchange the matrices with what they were before the last call of ``put_in``; again: the other way round."""
        for weight, before in self._before:
            now = weight.clone()
            weight.copy_(before)
            before.copy_(now)

    def errors(self, block_number: int) -> dict[int, float]:
        """Return, by parent block, the error of its FFN's input that is left on windows that weren't fitted."""
        tables = {source: self._journal.load(f"input-{source}") for source in self._channels.get(block_number, {})}
        return {source: float(found["error"]) for source, found in tables.items() if found}


@dataclass(frozen=True)
class _Into:
    """A matrix that reads the normalised state, as the block has it."""

    name: str
    tensor: SubBlockTensor
    weight: Tensor

    def part(self, channels: slice) -> list[Tensor]:
        """Return views [F, D] of some channels: one, or as many as are stacked in the matrix."""
        if self.tensor.axis == 1:
            return [self.weight.T[channels]]
        return [matrix[channels] for matrix in self.weight.chunk(self.tensor.stacked)]


@torch.inference_mode()
def fold_input(
    block: Block, channels: slice, change_DD: Tensor, stored: Callable[[str], torch.dtype]
) -> dict[str, Tensor]:
    """Put the map of one FFN into the matrices of a block that read the normalised state.

    Args:
        channels: those of the FFN in the block's.
        change_DD: A - I.
        stored: (name) -> the dtype in which the child stores that tensor, to which the result is rounded.

    Returns:
        The child's new tensors by name.
    """
    found = {}
    for into in (_Into(*each) for each in block.into("ffn")):
        for part_FD in into.part(channels):
            part_FD.copy_((part_FD + part_FD @ change_DD.to(part_FD)).to(stored(into.name)))
        found[into.name] = into.weight.to(stored(into.name)).cpu()
    return found
