"""What a library will take, before anything begins: entries, bytes, FLOPs and seconds of making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from ffn_fusion.blockwise.pace import measure_pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.blockwise.work import attention_flops, block_flops, ffn_flops, row_bytes
from ffn_fusion.blueprint import Part
from ffn_fusion.checkpoint.reader import torch_dtype
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.family import SubBlockTensor
from ffn_fusion.families.layout import block_parameters, sub_block_tensors
from ffn_fusion.processes import current
from ffn_fusion.puzzle.make import Making
from ffn_fusion.puzzle.space import Entry, Space
from ffn_fusion.puzzle.train import CHECKS, steps_of
from ffn_fusion.repair.estimate import EstimatedPlace, is_dual, place_flops, solver_bytes_of, width
from ffn_fusion.repair.places import Place

_BACKWARD = 2  # times the FLOPs of a forward pass
_OPTIMIZER_FLOPS = 40.0  # for each parameter and step, in time
_ERRORS = 3  # as surgery makes it, solved, and without the sub-blocks


@dataclass(frozen=True)
class LibraryEstimate:
    """What making a library takes on each process.

    Args:
        entries: by what they change: attention, ffn, block.
        left_out: choices that the family doesn't take, with the reason.
        parameters: of all trained or solved weights.
        library_bytes: of weights on disk.
        tokens: that this process works on.
        processes: that share the work.
        peak_memory, disk_bytes: of the process, and of its states on disk.
        flops: of everything.
        seconds: by the measured pace; None: not measured.
    """

    entries: Mapping[str, int]
    left_out: Mapping[str, str]
    parameters: int
    library_bytes: int
    tokens: int
    processes: int
    peak_memory: int
    disk_bytes: int
    flops: float
    seconds: float | None


def estimate_library(making: Making, *, memory: int | None = None, timed: bool = True) -> LibraryEstimate:
    """Estimate what ``make_library`` takes, entries that are there already included.

    Args:
        memory: bytes that the process may use; None: half of the free memory.
        timed: also estimate the seconds, which takes a second or two.

    Raises:
        UsageError: too little memory. OutputError: the disk is too small.
    """
    space, spec = making.space({}), making.parent.spec
    count = _Counter(making)
    costs = [count.entry(entry) for entry in space.entries]
    fitted, deciding = map(len, making.mine)
    context, dtype = making.ids_NT.shape[1], torch.promote_types(making.dtype, torch.float32)
    walked = (fitted + deciding) * sum(block_flops(spec, i, context) for i in range(len(spec.blocks)))
    flops = 2 * walked + sum(cost.flops for cost in costs)  # channels are measured in a walk of their own
    room = Room.here(making.stack.device, making.folder, memory)
    block = 2 * max(block_parameters(spec, i) for i in range(len(spec.blocks)))
    held = max((cost.held for cost in costs), default=0) + block * dtype.itemsize
    peak = room.peak(held)
    if peak > room.budget:
        raise room.too_little(
            "this library", peak, "for the widest of its sub-blocks",
            "give more (--memory), fewer tokens (--tokens), shorter runs (--max-run), or smaller batches (--batch)",
        )  # fmt: skip
    states = (_longest(space) + 4) * 2 * (fitted + deciding) * context * spec.hidden_size * making.dtype.itemsize
    stored = sum(cost.stored for cost in costs)
    if states + stored > room.disk:
        raise room.disk_full("the library and its states", states + stored, "free some space, or leave out choices")
    pace = measure_pace(making.stack, context, min(ROWS, context * (fitted + deciding))) if timed else None
    return LibraryEstimate(
        entries=Counter(entry.part for entry in space.entries),
        left_out=space.left_out,
        parameters=sum(cost.parameters for cost in costs),
        library_bytes=stored,
        tokens=(fitted + deciding) * context,
        processes=current().world,
        peak_memory=peak,
        disk_bytes=states,
        flops=flops,
        seconds=flops / pace.block_flops if pace else None,
    )


def _longest(space: Space) -> int:
    return max((entry.last - entry.first for entry in space.entries), default=0)


@dataclass(frozen=True)
class _EntryCost:
    flops: float
    parameters: int
    stored: int
    held: int


class _Counter:
    """Counts what each entry takes."""

    def __init__(self, making: Making) -> None:
        self.making, self.settings = making, making.settings
        self.fitted, self.deciding = map(len, making.mine)
        self.context, self.tokens = making.ids_NT.shape[1], making.ids_NT.numel()
        self.dtype = torch.promote_types(making.dtype, torch.float32)
        self.all_fitted = round(len(making.ids_NT) * (1 - making.settings.held_out))

    def entry(self, entry: Entry) -> _EntryCost:
        """Count one entry."""
        child = child_spec(self.making.parent.spec, entry.blueprint(self.making.identity), 1)
        at = entry.place(self.making.identity)
        forward = sum(self._forward(child, entry, at + k) for k in range(len(entry.kept_blocks)))
        flops = _ERRORS * self.deciding * forward
        tensors = [t for k, part in entry.changes for t in _tensors(child, at + k, part)]
        parameters = sum(prod(tensor.shape) for tensor in tensors)
        outputs = sum(prod(t.shape) for t in tensors if t.role in ("out of", "out of bias"))
        trains, stored = bool(self.settings.training.epochs and tensors), 0
        size, hidden = self.dtype.itemsize, child.hidden_size
        rows = min(ROWS, self.context * (self.fitted + self.deciding))
        widest = max([hidden, *(block.ffn_width for block in child.blocks)])
        held = sum(block_parameters(child, at + k) for k in range(len(entry.kept_blocks))) * size
        working = rows * row_bytes(hidden, widest, self.dtype)
        if self.settings.solve and tensors:
            stored, places = outputs, self._places(child, entry, at)
            flops += sum(self._solving(child, place, forward) for place in places)
            working += max(
                solver_bytes_of(width(child, p), self.tokens, hidden, "auto", self.dtype, False) for p in places
            )
        if trains:
            steps = steps_of(self.all_fitted, self.settings.training)
            windows = self.settings.training.batch / current().world
            flops += steps * ((1 + _BACKWARD) * windows * forward + _OPTIMIZER_FLOPS * parameters)
            flops += CHECKS * self.deciding * forward
            stored = parameters
            held += 4 * parameters * size  # gradients, two moments, the best so far
            working = max(working, 3 * rows * row_bytes(hidden, widest, self.dtype))
        return _EntryCost(flops, parameters if trains else outputs, stored * _stored_size(self.making), held + working)

    def _forward(self, child: ModelSpec, entry: Entry, k: int) -> float:
        if entry.part == "ffn" and not child.side_by_side:
            return ffn_flops(child, k, self.context)
        return attention_flops(child, k, self.context) + ffn_flops(child, k, self.context)

    def _places(self, child: ModelSpec, entry: Entry, at: int) -> list[Place]:
        return [Place(at + k, entry.last, "", part) for k, part in entry.changes]

    def _solving(self, child: ModelSpec, place: Place, forward: float) -> float:
        F, mine = width(child, place), (self.fitted + self.deciding) * self.context
        found = EstimatedPlace(place, F, is_dual(F, self.tokens))
        once = (self.fitted + self.deciding) * forward
        return place_flops(found, child.hidden_size, mine, self.tokens, once)


def _tensors(child: ModelSpec, k: int, part: Part) -> list[SubBlockTensor]:
    made = child.blocks[k].part(part)
    return list(sub_block_tensors(child, made)) if made else []


def _stored_size(making: Making) -> int:
    return torch_dtype(making.parent.dtype).itemsize
