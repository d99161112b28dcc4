"""The work of an entry, counted before it begins: FLOPs, parameters, bytes. No weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.blockwise.work import attention_flops, ffn_flops, row_bytes
from ffn_fusion.blueprint import Parent, Part
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.family import SubBlockTensor
from ffn_fusion.families.layout import block_parameters, sub_block_tensors
from ffn_fusion.processes import current
from ffn_fusion.puzzle.settings import LibrarySettings
from ffn_fusion.puzzle.space import Entry
from ffn_fusion.puzzle.train import CHECKS, steps_of
from ffn_fusion.repair.estimate import EstimatedPlace, is_dual, place_flops, solver_bytes_of, width
from ffn_fusion.repair.places import Place

_BACKWARD = 2  # times the FLOPs of a forward pass
_OPTIMIZER_FLOPS = 40.0  # for each parameter and step, in time
_ERRORS = 3  # as surgery makes it, solved, and without the sub-blocks


@dataclass(frozen=True)
class EntryWork:
    """What making an entry takes on this process: FLOPs, weights kept, their bytes, bytes of memory."""

    flops: float
    parameters: int
    stored: int
    held: int


@dataclass(frozen=True)
class Counting:
    """What the work of entries depends on.

    Args:
        spec, identity: the parent.
        fitted, deciding: windows of this process. all_windows: of all processes.
        context: T.
        dtype: of blocks at work. stored: bytes of a kept weight.
    """

    spec: ModelSpec
    identity: Parent
    settings: LibrarySettings
    fitted: int
    deciding: int
    all_windows: int
    context: int
    dtype: torch.dtype
    stored: int

    @property
    def tokens(self) -> int:
        """Tokens of all processes."""
        return self.all_windows * self.context

    def entry(self, entry: Entry) -> EntryWork:
        """Count one entry."""
        child = child_spec(self.spec, entry.blueprint(self.identity), 1)
        at, count = entry.place(self.identity), len(entry.kept_blocks)
        forward = sum(self._forward(child, entry, at + k) for k in range(count))
        flops = _ERRORS * self.deciding * forward
        tensors = [t for k, part in entry.changes for t in _tensors(child, at + k, part)]
        parameters = sum(prod(tensor.shape) for tensor in tensors)
        outputs = sum(prod(t.shape) for t in tensors if t.role in ("out of", "out of bias"))
        size, hidden = self.dtype.itemsize, child.hidden_size
        rows = min(ROWS, self.context * (self.fitted + self.deciding))
        activations = rows * row_bytes(hidden, max([hidden, *(block.ffn_width for block in child.blocks)]), self.dtype)
        held, working, kept = sum(block_parameters(child, at + k) for k in range(count)) * size, activations, 0
        if self.settings.solve and tensors:
            kept, places = outputs, [Place(at + k, entry.last, "", part) for k, part in entry.changes]
            flops += sum(self._solving(child, place, forward) for place in places)
            widths = [width(child, place) for place in places]
            solver = max(solver_bytes_of(F, self.tokens, hidden, "auto", self.dtype, False) for F in widths)
            working = activations + solver
        if self.settings.training.epochs and tensors:
            steps = steps_of(round(self.all_windows * (1 - self.settings.held_out)), self.settings.training)
            windows = self.settings.training.batch / current().world
            flops += steps * ((1 + _BACKWARD) * windows * forward + _OPTIMIZER_FLOPS * parameters)
            flops += CHECKS * self.deciding * forward
            kept = parameters
            held += 4 * parameters * size  # gradients, two moments, the best so far
            working = max(working, 3 * activations)
        return EntryWork(flops, kept, kept * self.stored, held + working)

    def _forward(self, child: ModelSpec, entry: Entry, k: int) -> float:
        """FLOPs of block k of the child on one window, as far as the entry needs it."""
        ffn = ffn_flops(child, k, self.context)
        only_ffn = entry.part == "ffn" and not child.side_by_side
        return ffn if only_ffn else attention_flops(child, k, self.context) + ffn

    def _solving(self, child: ModelSpec, place: Place, forward: float) -> float:
        F, windows = width(child, place), self.fitted + self.deciding
        found = EstimatedPlace(place, F, is_dual(F, self.tokens))
        return place_flops(found, child.hidden_size, windows * self.context, self.tokens, windows * forward)


def _tensors(child: ModelSpec, k: int, part: Part) -> list[SubBlockTensor]:
    made = child.blocks[k].part(part)
    return list(sub_block_tensors(child, made)) if made else []
