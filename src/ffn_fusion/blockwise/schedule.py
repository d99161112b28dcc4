"""How a sweep is carried out within a memory limit: weights resident or streamed, windows in chunks, states in files.

The trade-off: the states of all variants for all windows are either written to files once they outgrow the memory
(bytes spilled), or the windows go through in several chunks, each of which reads all weights again (bytes read again).
The schedule takes whichever moves fewer bytes; if weights are resident, chunks cost nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import torch

from ffn_fusion.blockwise.head import LOGIT_BYTES
from ffn_fusion.blockwise.memory import free_memory, used_memory
from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.blockwise.work import Work
from ffn_fusion.errors import OutputError, UsageError
from ffn_fusion.families.layout import sub_block_parameters
from ffn_fusion.processes import neighbours
from ffn_fusion.units import gb, gib

_DEFAULT_SHARE = 0.5  # of the free memory, where no budget is given
_CHUNK_BYTES = 1 << 30  # states of a chunk where chunks cost nothing
_SLACK = 1.1  # what allocators and buffers add
_STATES_OF_ROW = 16  # hidden states that one token of a matmul has at a time: inputs, norms, q, k, v, contributions
_WIDTHS_OF_ROW = 4  # FFN activations: gate, its activation, up, their product
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


@dataclass(frozen=True)
class Store:
    """The weights in bytes: as stored, as computed with, and the largest block and head as computed with."""

    stored: int
    computed: int
    block: int
    ends: int

    @classmethod
    def of(cls, work: Work, stored: int, dtype: torch.dtype) -> Store:
        spec = work.spec
        blocks = [sub_block_parameters(spec, b.attention) + sub_block_parameters(spec, b.ffn) for b in spec.blocks]
        end = spec.vocab_size * spec.hidden_size * dtype.itemsize
        computed = sum(blocks) * dtype.itemsize + end * (1 if spec.tied else 2)
        return cls(stored, computed, max(blocks) * dtype.itemsize, end)


@dataclass(frozen=True)
class Room:
    """What a machine has for one process, in bytes: memory already in use, free memory of the device, page cache that
    can be spared for files, and free disk space.
    """

    used: int
    free: int
    cache: int
    disk: int

    @classmethod
    def here(cls, device: torch.device, folder: Path | None) -> Room:
        """On this machine, with states in ``folder`` (None: a temporary one)."""
        on_host = device.type != "cuda"
        host = free_memory(torch.device("cpu")) // neighbours()
        return cls(
            used=used_memory() if on_host else 0,
            free=host if on_host else free_memory(device) // neighbours(),
            cache=host // 2,
            disk=_free_disk(folder),
        )


def make_schedule(
    work: Work,
    *,
    windows: int,
    stored: int,
    dtype: torch.dtype,
    room: Room,
    memory: int | None = None,
    in_files: bool = False,
) -> Schedule:
    """Decide how ``windows`` windows go through.

    Args:
        stored: bytes of the checkpoint.
        memory: limit for the process in bytes, including the interpreter and its libraries; on a GPU, bytes there.
            Default: half of the free memory.
        in_files: write states to files, so that they survive the process; otherwise only if they do not fit.

    Raises:
        UsageError: the limit is too small for this model; says how much is needed.
        OutputError: the disk is too small for the states of even one window.
    """
    store = Store.of(work, stored, dtype)
    budget = memory if memory is not None else int(room.used + _DEFAULT_SHARE * room.free)
    peak = partial(_peak, work, store, dtype, room.used)
    smallest = work.context
    if peak(False, smallest) > budget:
        raise UsageError(
            f"{gib(budget)} of memory are too little: this model needs {gib(peak(False, smallest))} "
            f"with windows of {work.context} tokens, to hold two of its blocks and their activations",
            "give more (--memory), shorter windows (--context), or a smaller dtype (--dtype bfloat16)"
            + (f"; repaired candidates take {gib(work.held)} of it (--no-repair)" if work.held else ""),
        )
    resident = peak(True, max(smallest, min(ROWS, smallest * windows))) <= budget
    rows = smallest
    while rows + smallest <= max(ROWS, smallest) and peak(resident, rows + smallest) <= budget:
        rows += smallest
    left = budget - peak(resident, rows)
    window = max(work.states) * work.context * work.spec.hidden_size * dtype.itemsize
    least = _least(work, windows)
    if resident and not in_files and (fitting := _chunks(work, windows, left // window)):
        chunk = _handy(fitting, window, _CHUNK_BYTES)
    elif in_files := in_files or window * windows > left:
        chunk = _chunk(window, windows, store.stored, work, dtype, resident, room)
    else:
        chunk = windows
    chunks, largest = len(_slices(windows, chunk, least)), _largest(work, windows, chunk)
    traffic = _traffic(work, dtype)
    return Schedule(
        resident=resident,
        rows=rows,
        chunk=chunk,
        chunks=chunks,
        in_files=in_files,
        peak_memory=peak(resident, min(rows, largest * work.context * max(work.states)))
        + (0 if in_files else window * largest),
        weight_bytes=store.stored * (1 if resident else chunks),
        moved_bytes=2 * traffic * windows if in_files else 0,
        disk_bytes=2 * window * largest if in_files else 0,
        in_cache=2 * window * largest <= room.cache,
        alternative=_alternative(resident, chunks, window, windows, store.stored, traffic, room.cache),
        least=least,
    )


def _peak(work: Work, store: Store, dtype: torch.dtype, used: int, resident: bool, rows: int) -> int:
    """Peak memory in bytes: either the blocks are in memory with their activations, or the head with its logits.

    Args:
        used: bytes that the process has already.
        rows: tokens that go through a block together.
    """
    head = _LOGITS_AT_ONCE * LOGIT_BYTES if work.heads else 0
    activations = rows * (_row_bytes(work, dtype) + work.row_held) + work.held
    if resident:
        return int(used + _SLACK * (store.computed + max(activations, head)))
    blocks = (store.ends if work.spec.tied else 0) + 2 * store.block + activations
    return int(used + _SLACK * max(blocks, store.ends + store.block, store.ends + head))


def _chunk(window: int, windows: int, stored: int, work: Work, dtype: torch.dtype, resident: bool, room: Room) -> int:
    """Return the number of windows per chunk that moves the fewest bytes to and from disk.

    States that fit into the page cache beside the weights hardly touch the disk; larger ones are spilled completely.
    """
    fitting = _chunks(work, windows, room.disk // (2 * window))
    if not fitting:
        fewest = _largest(work, windows, 1)
        raise OutputError(
            f"the states of {'one window' if fewest == 1 else f'{fewest} windows'} take {gib(2 * window * fewest)}, "
            f"and {gib(room.disk)} are free on the disk",
            "free some space, choose another disk, or shorter windows (--context)",
        )
    if resident:
        return _handy(fitting, window, min(_CHUNK_BYTES, room.cache // 2))

    def moved(chunk: int) -> int:
        spilled = 2 * window * _largest(work, windows, chunk) > room.cache
        return -(-windows // chunk) * stored + 2 * _traffic(work, dtype) * windows * spilled

    return min(fitting, key=moved)


def _chunks(work: Work, windows: int, most: int) -> list[int]:
    """Return the possible sizes of chunks, largest first and as even as possible; only those large
    enough for the edits if there are any, otherwise the largest.
    """
    least = _least(work, windows)
    sizes = [ceil(windows / chunks) for chunks in range(1, max(1, windows // least) + 1)]
    fitting = [size for size in sizes if _largest(work, windows, size) <= most]
    return [size for size in fitting if size >= min(windows, work.windows_wanted)] or fitting[:1]


def _handy(sizes: Sequence[int], window: int, handy: int) -> int:
    """Return the largest size whose states are no more than handy, otherwise the smallest."""
    return next((size for size in sizes if size * window <= handy), sizes[-1])


def _largest(work: Work, windows: int, chunk: int) -> int:
    least = _least(work, windows)
    sizes: list[int] = [part.stop - part.start for part in _slices(windows, chunk, least)]
    return max(sizes)


def _least(work: Work, windows: int) -> int:
    return min(windows, 2 if work.windows_wanted > 1 else 1)


def _slices(windows: int, chunk: int, least: int) -> list[slice]:
    if not windows:  # a process that has nothing to do
        return []
    starts = list(range(0, windows, max(chunk, least)))
    if len(starts) > 1 and windows - starts[-1] < least:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], windows], strict=True)]


def _traffic(work: Work, dtype: torch.dtype) -> int:
    """Return the bytes of states written in one pass, for one window."""
    return sum(work.states) * work.context * work.spec.hidden_size * dtype.itemsize


def _alternative(
    resident: bool, chunks: int, window: int, windows: int, stored: int, traffic: int, cache: float
) -> str:
    if resident:
        return "weights stay in memory: chunks cost nothing"
    if chunks > 1:
        return f"in one chunk: {gb(stored)} of weights read, {gb(2 * traffic * windows)} of states spilled"
    needed = ceil(2 * window * windows / cache) if cache else windows
    if needed <= 1:
        return "the states fit the system's cache: one chunk, no weights read twice"
    return f"without spilling: {needed} chunks, {gb(needed * stored)} of weights read"


def _row_bytes(work: Work, dtype: torch.dtype) -> int:
    widest = max((block.ffn.width for block in work.spec.blocks if block.ffn), default=0)
    heads = 3 * work.spec.heads * work.spec.head_dim
    return (_STATES_OF_ROW * work.spec.hidden_size + heads + _WIDTHS_OF_ROW * widest) * dtype.itemsize


def _free_disk(folder: Path | None) -> int:
    import tempfile

    place = (folder or Path(tempfile.gettempdir())).absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
