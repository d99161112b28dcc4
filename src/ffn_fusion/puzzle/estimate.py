"""What a library will take, before anything begins: entries, bytes, FLOPs and seconds of making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ffn_fusion.blockwise.pace import measure_pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.blockwise.work import block_flops
from ffn_fusion.families.layout import block_parameters
from ffn_fusion.processes import current
from ffn_fusion.puzzle.make import Making
from ffn_fusion.puzzle.space import Space


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
    space, spec = making.space, making.parent.spec
    count = making.counting
    costs = [count.entry(entry) for entry in space.entries]
    fitted, deciding, context, dtype = count.fitted, count.deciding, count.context, count.dtype
    walked = (fitted + deciding) * sum(block_flops(spec, i, context) for i in range(len(spec.blocks)))
    flops = walked + sum(cost.flops for cost in costs)
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
