"""One sweep of the analysis: estimated, scheduled, cut into chunks, resumed, shared by processes.

The same code carries out what fits into memory and what doesn't; the schedule says which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ffn_fusion.blockwise.edits import Edit
from ffn_fusion.blockwise.head import Divergence, compare, joined
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.schedule import Schedule, make_schedule
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates, MemoryStates, States
from ffn_fusion.blockwise.sweep import PARENT, Observer, Swept, evaluations, sweep
from ffn_fusion.blockwise.work import Work, count_work
from ffn_fusion.processes import Progress, current


@dataclass(frozen=True)
class Pass:
    """A sweep that is to be made: edits by name, and which of them are compared with the parent at the head.

    It runs on every ``every``-th window.
    """

    name: str
    edits: Mapping[str, Edit]
    scored: tuple[str, ...]
    observe: Observer | None = None
    every: int = 1

    def work(self, stack: Stack, context: int) -> Work:
        return count_work(stack.spec, list(self.edits.values()), scored=len(self.scored), context=context)


@dataclass(frozen=True)
class PassEstimate:
    """What a pass takes on this machine: counts, schedule, and seconds by the measured pace (None: not measured).

    ``windows`` are those of this process, ``processes`` how many share the work.
    """

    name: str
    variants: int
    windows: int
    processes: int
    work: Work
    schedule: Schedule
    seconds: float | None

    @property
    def block_flops(self) -> float:
        """Inside the blocks, of all windows."""
        return self.windows * self.work.block_flops + self.schedule.chunks * sum(self.work.once)


@dataclass(frozen=True)
class Found:
    """What a pass found: this process's chunks as swept, and the damages of all windows of all processes."""

    chunks: tuple[Swept, ...]
    divergences: dict[str, Divergence]


def estimate_pass(
    pass_: Pass, stack: Stack, ids_NT: Tensor, stored: int, memory: int | None, folder: Path | None, pace: Pace | None
) -> PassEstimate:
    """Decide how this process carries out its share.

    Raises:
        UsageError: the memory budget is too small. OutputError: the disk is.
    """
    mine = max(1, len(ids_NT[current().share(len(ids_NT))]))
    work = pass_.work(stack, ids_NT.shape[1])
    schedule = make_schedule(
        work,
        windows=mine,
        stored=stored,
        dtype=stack.dtype,
        room=Room.here(stack.device, folder, memory),
        in_files=folder is not None,
    )
    seconds = pace.seconds(work, schedule, mine) if pace else None
    return PassEstimate(pass_.name, len(pass_.edits), mine, current().world, work, schedule, seconds)


def carry_out(
    pass_: Pass, estimate: PassEstimate, stack: Stack, ids_NT: Tensor, folder: Path | None, key: str, progress: Progress
) -> Found:
    """Sweep this process's windows, chunk by chunk, and gather what all processes found, in window order.

    Progress counts block evaluations of one window, for all processes as this one goes; a head is as many as it has
    FLOPs of a block.
    """
    mine_NT = ids_NT[current().share(len(ids_NT))]
    schedule = estimate.schedule
    if stack.resident and not schedule.resident:
        stack.forget()
    stack.resident = schedule.resident
    blocks = evaluations(len(stack), pass_.edits.values())
    heads = round(estimate.work.head_flops / max(1.0, estimate.work.block_flops) * blocks)
    chunks, parts = [], []
    for number, part in enumerate(schedule.slices(len(mine_NT))):
        chunk = mine_NT[part]

        def tell(evaluated: int, before: int = part.start * (blocks + heads)) -> None:
            progress(pass_.name, (before + evaluated) * len(ids_NT) // len(mine_NT), len(ids_NT) * (blocks + heads))

        place = folder / f"{pass_.name}-{number}".replace(" ", "-") if folder else None
        journal = Journal(place, _key(key, pass_, chunk, stack, schedule))
        N, T = chunk.shape
        kept: AbstractContextManager[States] = nullcontext(MemoryStates(N))
        if schedule.in_files:
            kept = FileStates(place, N, T, stack.spec.hidden_size, stack.dtype, stack.device)
        with kept as states:
            swept, divergences = _chunk(pass_, stack, schedule, chunk, states, journal, blocks, heads, tell)
        chunks.append(swept)
        parts.append(divergences)
    gathered = current().gather(parts)
    return Found(tuple(chunks), {name: joined([part[name] for part in gathered]) for name in gathered[0]})


def _chunk(
    pass_: Pass,
    stack: Stack,
    schedule: Schedule,
    ids_NT: Tensor,
    states: States,
    journal: Journal,
    blocks: int,
    heads: int,
    tell: Callable[[int], None],
) -> tuple[Swept, dict[str, Divergence]]:
    N = len(ids_NT)
    scored = (PARENT, *pass_.scored)

    def on_window(done: int) -> None:
        tell(N * blocks + done * heads)

    swept = sweep(
        stack,
        ids_NT,
        pass_.edits,
        observe=pass_.observe,
        keep=scored.__contains__,
        states=states,
        journal=journal,
        rows=schedule.rows,
        on_progress=lambda done, _: tell(done),
    )
    models = {name: swept.final(name) for name in scored}
    divergences = compare(swept.final(), models, ids_NT, journal=journal, on_window=on_window)
    journal.write({"finished": True})  # the states aren't needed any more
    return swept, divergences


def _key(key: str, pass_: Pass, ids_NT: Tensor, stack: Stack, schedule: Schedule) -> str:
    """A hash over all that a chunk's results depend on."""
    edits = [f"{name}: {edit!r}" for name, edit in pass_.edits.items()]
    settings = [str(stack.dtype), str(stack.device), schedule.rows, torch.__version__, version("ffn-fusion")]
    text = json.dumps([key, edits, pass_.scored, settings, list(ids_NT.shape)])
    return hashlib.sha256(text.encode() + ids_NT.numpy().tobytes()).hexdigest()
