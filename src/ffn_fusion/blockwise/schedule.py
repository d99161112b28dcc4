"""How a sweep is carried out within a memory limit: weights resident or streamed, windows in chunks, states in files.

The trade-off: the states of all variants for all windows are either written to files once they outgrow the memory
(bytes spilled), or the windows go through in several chunks, each of which reads all weights again (bytes read again).
The schedule takes whichever moves fewer bytes; if weights are resident, chunks cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch

from ffn_fusion.blockwise.head import LOGIT_BYTES
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.blockwise.work import Work, row_bytes
from ffn_fusion.families.layout import block_parameters, head_parameters
from ffn_fusion.units import gb, gib

_CHUNK_BYTES = 1 << 30  # states of a chunk where chunks cost nothing
_LOGITS_AT_ONCE = 4  # slices of logits in memory at a time: the parent's as they come, whole, and as probabilities


@dataclass(frozen=True)
class Schedule:
    """The decision, in bytes. ``rows`` tokens go through a block together, ``chunk`` windows through the model.

    ``peak_memory`` is the estimate for the process; ``weight_bytes`` are read from the checkpoint; ``moved_bytes`` of
    states are written to files and read back; ``in_cache`` says whether the page cache is expected to hold them;
    ``disk_bytes`` are needed at a time. ``alternative`` says what the other way would have cost. No chunk has fewer
    than ``least`` windows: if the last chunk would, it takes some from the one before.
    """

    resident: bool
    rows: int
    chunk: int
    chunks: int
    in_files: bool
    peak_memory: int
    weight_bytes: int
    moved_bytes: int
    disk_bytes: int
    in_cache: bool = True
    alternative: str = ""
    least: int = 1

    def slices(self, windows: int) -> list[slice]:
        """Return the chunks that ``windows`` windows are divided into, in order."""
        return _slices(windows, self.chunk, self.least)

    @property
    def spilled_bytes(self) -> int:
        """The bytes of states that actually go to disk and back."""
        return 0 if self.in_cache else self.moved_bytes


def make_schedule(
    work: Work, *, windows: int, stored: int, dtype: torch.dtype, room: Room, in_files: bool = False
) -> Schedule:
    """Decide how ``windows`` windows go through.

    Args:
        stored: bytes of the checkpoint.
        dtype: of the computation.
        in_files: write states to files, so that they survive the process; otherwise only if they do not fit.

    Raises:
        UsageError: there is too little memory for this model; says how much is needed.
        OutputError: the disk is too small for the states of even one window.
    """
    plan = _Planner(work, windows, stored, dtype, room)
    smallest, budget = work.context, room.budget
    if plan.peak(False, smallest) > budget:
        raise room.too_little(
            "this model",
            plan.peak(False, smallest),
            f"with windows of {work.context} tokens, to hold two of its blocks and their activations",
            "give more (--memory), shorter windows (--context), or a smaller dtype (--dtype bfloat16)"
            + (f"; repaired candidates take {gib(work.held)} of it (--no-repair)" if work.held else ""),
        )
    resident = plan.peak(True, max(smallest, min(ROWS, smallest * windows))) <= budget
    rows = smallest
    while rows + smallest <= max(ROWS, smallest) and plan.peak(resident, rows + smallest) <= budget:
        rows += smallest
    left = budget - plan.peak(resident, rows)
    if resident and not in_files and (fitting := plan.chunks(left // plan.window)):
        chunk = plan.handy(fitting, _CHUNK_BYTES)
    elif in_files := in_files or plan.window * windows > left:
        chunk = plan.chunk_in_files(resident)
    else:
        chunk = windows
    chunks, largest = len(plan.slices(chunk)), plan.largest(chunk)
    disk = 2 * plan.window * largest
    return Schedule(
        resident=resident,
        rows=rows,
        chunk=chunk,
        chunks=chunks,
        in_files=in_files,
        peak_memory=plan.peak(resident, min(rows, largest * work.context * max(work.states)))
        + (0 if in_files else plan.window * largest),
        weight_bytes=stored * (1 if resident else chunks),
        moved_bytes=2 * plan.traffic * windows if in_files else 0,
        disk_bytes=disk if in_files else 0,
        in_cache=disk <= room.cache,
        alternative=plan.alternative(resident, chunks),
        least=plan.least,
    )


@dataclass(frozen=True)
class _Planner:
    """What the decision weighs. All sizes are in bytes."""

    work: Work
    windows: int
    stored: int
    dtype: torch.dtype
    room: Room

    def peak(self, resident: bool, rows: int) -> int:
        """Return the peak memory: either the blocks are in memory with their activations, or the head with its logits.

        Args:
            rows: tokens that go through a block together.
        """
        spec, blocks = self.work.spec, self._blocks
        end = self.dtype.itemsize * head_parameters(spec)
        logits = _LOGITS_AT_ONCE * LOGIT_BYTES if self.work.heads else 0
        width = max((block.ffn.width for block in spec.blocks if block.ffn), default=0)
        heads = 3 * max(spec.head_counts) * spec.head_dim * self.dtype.itemsize
        row = row_bytes(spec.hidden_size, width, self.dtype) + heads + self.work.row_held
        activations = rows * row + self.work.held
        if resident:
            return self.room.peak(sum(blocks) + end * (1 if spec.tied else 2) + max(activations, logits))
        streamed = (end if spec.tied else 0) + 2 * max(blocks) + activations
        return self.room.peak(max(streamed, end + max(blocks), end + logits))

    @cached_property
    def _blocks(self) -> list[int]:
        spec = self.work.spec
        return [self.dtype.itemsize * block_parameters(spec, i) for i in range(len(spec.blocks))]

    @cached_property
    def window(self) -> int:
        """The states of one window, where they are most."""
        return max(self.work.states) * self._state

    @cached_property
    def traffic(self) -> int:
        """The states of one window that are written in one pass."""
        return sum(self.work.states) * self._state

    @property
    def _state(self) -> int:
        return self.work.context * self.work.spec.hidden_size * self.dtype.itemsize

    @property
    def least(self) -> int:
        """The fewest windows in a chunk."""
        return min(self.windows, 2 if self.work.windows_wanted > 1 else 1)

    def slices(self, chunk: int) -> list[slice]:
        return _slices(self.windows, chunk, self.least)

    def largest(self, chunk: int) -> int:
        """Return the number of windows in the largest chunk."""
        sizes: list[int] = [part.stop - part.start for part in self.slices(chunk)]
        return max(sizes)

    def chunks(self, most: int) -> list[int]:
        """Return the possible sizes of chunks up to ``most``, largest first and as even as possible; only those large
        enough for the edits if there are any, otherwise the largest.
        """
        fitting = [size for size in self._sizes if self.largest(size) <= most]
        return [size for size in fitting if size >= min(self.windows, self.work.windows_wanted)] or fitting[:1]

    @property
    def _sizes(self) -> list[int]:
        return [ceil(self.windows / chunks) for chunks in range(1, max(1, self.windows // self.least) + 1)]

    def handy(self, sizes: list[int], limit: int) -> int:
        """Return the largest size whose states are within the limit, otherwise the smallest."""
        return next((size for size in sizes if size * self.window <= limit), sizes[-1])

    def chunk_in_files(self, resident: bool) -> int:
        """Return the number of windows per chunk that moves the fewest bytes to and from disk.

        States that fit into the page cache beside the weights hardly touch the disk; larger ones are spilled
        completely.
        """
        fitting = self.chunks(self.room.disk // (2 * self.window))
        if not fitting:
            fewest = min(map(self.largest, self._sizes))
            raise self.room.disk_full(
                f"the states of {'one window' if fewest == 1 else f'{fewest} windows'}",
                2 * self.window * fewest,
                "free some space, choose another disk, or shorter windows (--context)",
            )
        if resident:
            return self.handy(fitting, min(_CHUNK_BYTES, self.room.cache // 2))

        def moved(chunk: int) -> int:
            spilled = 2 * self.window * self.largest(chunk) > self.room.cache
            return -(-self.windows // chunk) * self.stored + 2 * self.traffic * self.windows * spilled

        return min(fitting, key=moved)

    def alternative(self, resident: bool, chunks: int) -> str:
        """Say what the other way would have cost."""
        if resident:
            return "weights stay in memory: chunks cost nothing"
        if chunks > 1:
            spilled = 2 * self.traffic * self.windows
            return f"in one chunk: {gb(self.stored)} of weights read, {gb(spilled)} of states spilled"
        cache = self.room.cache
        needed = ceil(2 * self.window * self.windows / cache) if cache else self.windows
        if needed <= 1:
            return "the states fit the system's cache: one chunk, no weights read twice"
        return f"without spilling: {needed} chunks, {gb(needed * self.stored)} of weights read"


def _slices(windows: int, chunk: int, least: int) -> list[slice]:
    if not windows:  # a process that has nothing to do
        return []
    starts = list(range(0, windows, max(chunk, least)))
    if len(starts) > 1 and windows - starts[-1] < least:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], windows], strict=True)]
