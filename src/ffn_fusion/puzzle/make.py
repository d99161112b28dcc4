"""Make a library: one walk through the parent, block by block, with all entries that end at a block made there.

Each of the parent's blocks is read once. Its states before and after the block are in files, so the text may be long
and the model larger than memory; an entry is made by itself from these states, kept, and forgotten. A call that was
killed goes on with the entry that it was at.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Block, ReadAhead, Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blockwise.steps_done import StepsDone
from ffn_fusion.blockwise.sweep import ROWS
from ffn_fusion.blueprint import NarrowedFfn, Parent
from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import DataError
from ffn_fusion.families import require
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.puzzle.lesson import Lesson, View
from ffn_fusion.puzzle.settings import LibrarySettings
from ffn_fusion.puzzle.solve import solve_entry
from ffn_fusion.puzzle.space import Entry, Space, keep_largest, make_space
from ffn_fusion.puzzle.store import WORK, Library, StoredEntry
from ffn_fusion.puzzle.train import train_entry
from ffn_fusion.puzzle.work import Counting
from ffn_fusion.repair.estimate import is_dual
from ffn_fusion.repair.fit import Windows
from ffn_fusion.repair.repair import split_windows
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.narrow_ffn import channel_contribution

_LEAST_WINDOWS = 4
_NOT_METHOD = {"enabled", "texts", "tokens", "context", "space", "score_tokens", "timed"}


@dataclass(frozen=True)
class Making:
    """A library to be made.

    Args:
        texts: windows to solve and train on, all of one length; a share of them decides.
        folder: of the library. A call that was interrupted there goes on; entries that are there are kept.
        dtype: of the forward passes.
        device: with "cuda" and several processes, each takes a GPU of its own.

    Raises:
        DataError: too little text. FamilyError: the model can't be analysed.
    """

    parent: Checkpoint
    texts: Sequence[TokenWindows]
    folder: Path
    settings: LibrarySettings = LibrarySettings()
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self.parent.spec, "analyse")
        if len(self.ids_NT) < _LEAST_WINDOWS * current().world:
            raise DataError(
                f"{len(self.ids_NT)} windows of text are too few for a library",
                f"give at least {_LEAST_WINDOWS} a process: more tokens (--tokens), or shorter windows (--context)",
            )

    @cached_property
    def ids_NT(self) -> Tensor:  # noqa: N802
        return torch.from_numpy(np.concatenate([text.ids_NT for text in self.texts]))

    @cached_property
    def stack(self) -> Stack:
        """The parent."""
        return Stack(self.parent, dtype=self.dtype, device=current().device(self.device), resident=False)

    @cached_property
    def identity(self) -> Parent:
        """The parent as blueprints name it."""
        return self.parent.spec.parent(self.parent.name, self.parent.revision)

    @cached_property
    def mine(self) -> tuple[list[int], list[int]]:
        """The windows of this process: those that are fitted, and those that decide."""
        here = current()
        fitted, deciding = split_windows(len(self.ids_NT), self.settings.held_out)
        return fitted[here.rank :: here.world], deciding[here.rank :: here.world]

    @property
    def windows(self) -> Windows:
        """The same as slices of this process's states."""
        fitted, deciding = map(len, self.mine)
        size = max(1, ROWS // self.ids_NT.shape[1])
        return Windows(_slices(0, fitted, size), _slices(fitted, fitted + deciding, size))

    @property
    def counting(self) -> Counting:
        """What the work of an entry depends on."""
        fitted, deciding = map(len, self.mine)
        count, context = self.ids_NT.shape
        dtype, stored = torch.promote_types(self.dtype, torch.float32), torch_dtype(self.parent.dtype).itemsize
        return Counting(self.parent.spec, self.identity, self.settings, fitted, deciding, count, context, dtype, stored)

    @cached_property
    def space(self) -> Space:
        """All entries; those with narrowed FFNs get their channels when their block is there."""
        return make_space(self.parent.spec, self.settings.space)

    @property
    def key(self) -> str:
        """A hash of everything that an entry depends on beside its own choice."""
        words = [
            self.parent.fingerprint,
            self.parent.files_state,
            self.settings.model_dump(mode="json", exclude=_NOT_METHOD),
            [self.seed, str(self.dtype), str(self.device), torch.__version__, version("ffn-fusion"), current().world],
            list(self.ids_NT.shape),
        ]
        return hashlib.sha256(json.dumps(words).encode() + self.ids_NT.numpy().tobytes()).hexdigest()

    @property
    def header(self) -> dict[str, Any]:
        """What the library says of itself."""
        return {
            "version": 1,
            "parent": self.identity.model_dump(mode="json"),
            "calibration": {"texts": [text.label for text in self.texts], "tokens": int(self.ids_NT.numel())},
            "settings": self.settings.model_dump(mode="json", exclude={"texts"}),
        }


@together
def make_library(making: Making, *, progress: Progress = silent) -> Library:
    """Make all entries that aren't there yet; see ``Making``.

    Args:
        progress: counts the FLOPs of entries.

    Raises:
        OutputError: the folder holds something else, or the disk is full.
    """
    here = current()
    if not here.rank:
        Library.claim(making.folder, making.key, making.header)
    here.gather([None])
    library = Library(making.folder, making.header)
    _Walk(making, library, progress).carry_out()
    return Library(making.folder, making.header)


class _Walk:
    """The walk through the parent; ``x`` slots hold its states before the blocks that open entries need."""

    def __init__(self, making: Making, library: Library, progress: Progress) -> None:
        self.making, self.library, self.progress = making, library, progress
        entries = making.space.entries
        self.by_last: dict[int, list[Entry]] = {}
        for entry in entries:
            self.by_last.setdefault(entry.last, []).append(entry)
        count = making.counting
        self.work = {entry.name: round(count.entry(entry).flops) for entry in entries}
        self.total, self.done = sum(self.work.values()), 0
        fitted, deciding = making.mine
        self.ids_NT, self.parts = making.ids_NT[fitted + deciding], making.windows.parts
        here = current()
        self.folder = making.folder / WORK / f"process-{here.rank}-of-{here.world}"
        stack = making.stack
        N, T = self.ids_NT.shape
        self.states = FileStates(self.folder, N, T, stack.spec.hidden_size, stack.dtype, stack.device)

    def carry_out(self) -> None:
        stop = 1 + max(self.by_last, default=-1)
        spans = sorted({(entry.first, entry.last) for ending in self.by_last.values() for entry in ending})
        self.journal = Journal(self.folder / "notes", f"{self.making.key} {spans}")
        steps = StepsDone(self.journal, states=self.states)
        done = steps.resume()
        if not done:
            self._embed()
        try:
            loader = ReadAhead(self.making.stack, range(max(0, done - 1), stop))
            for i in range(max(0, done - 1), stop):
                block = loader.take(i)
                if i >= done:
                    self._go_on(i, block)
                    steps.note(i + 1)
                found = self.journal.load(f"channels-{i}")
                for entry in self.by_last.get(i, ()):
                    self._make(keep_largest(entry, found["contribution"]) if found else entry)
        finally:
            self.states.close(keep=True)

    @torch.no_grad()
    def _embed(self) -> None:
        for part in self.parts:
            self.states.write(("x", 0), part, self.making.stack.embed(self.ids_NT[part]))
        self.states.turn()
        self.making.stack.forget_embedding()

    @torch.no_grad()
    def _go_on(self, i: int, block: Block) -> None:
        """The parent's states go through block i; those before and after it, and after its attention, are kept.

        On the way its channels are measured, if an entry chooses among them.
        """
        began = time.perf_counter()
        later = (entry for last, ending in self.by_last.items() if last >= i for entry in ending)
        open_from = min((entry.first for entry in later), default=i)
        narrows = any(isinstance(e.blocks[0].ffn, NarrowedFfn) for e in self.by_last.get(i, ()))
        used = torch.zeros(
            self.making.parent.spec.blocks[i].ffn_width, dtype=torch.float64, device=self.making.stack.device
        )
        for part in self.parts:
            for j in range(min(open_from, i), i + 1):
                x = self.states.read(("x", j), part)
                self.states.write(("x", j), part, x)
            attention = block.attention(x)
            inner, ffn = self._ffn(block, block.ffn_input(x, attention))
            if narrows:
                used += inner.flatten(0, 1).to(used.dtype).abs().sum(0)
            self.states.write(("y", 0), part, x + attention)
            self.states.write(("x", i + 1), part, x + attention + ffn)
        if narrows:
            current().add_up(used)
            contribution = channel_contribution(used, block.projection("ffn").weight) / self.making.ids_NT.numel()
            self.journal.save(f"channels-{i}", {"contribution": contribution.cpu().numpy()})
        self.states.turn(time.perf_counter() - began)

    def _ffn(self, block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        if not block.has_ffn:
            return x[..., :0], torch.zeros_like(x)
        return block.inner_and_outer("ffn", x)

    def _make(self, entry: Entry) -> None:
        """Make one entry, unless it is there; the first process keeps it."""
        here = current()
        found = self.library.find(entry) if not here.rank else None
        if not any(here.gather([found is not None])):
            began = time.perf_counter()
            stored, weights = make_entry(self.making, self._lesson(entry), self.folder / "scratch")
            if not here.rank:
                self.library.add(stored.model_copy(update={"seconds": time.perf_counter() - began}), weights)
        self.done += self.work[entry.name]
        self.progress("entries", self.done, self.total)

    def _lesson(self, entry: Entry) -> Lesson:
        making, wide = self.making, torch.promote_types(self.making.dtype, torch.float32)
        child = Child(making.parent, entry.blueprint(making.identity), 1)
        stack = Stack(child, dtype=wide, device=making.stack.device, resident=False)
        at = entry.place(making.identity)
        return Lesson(
            entry,
            [stack.block(at + k) for k in range(len(entry.kept_blocks))],
            before=lambda j: View(self.states, ("x", j), wide),
            attended=View(self.states, ("y", 0), wide),
            windows=making.windows,
            context=self.ids_NT.shape[1],
        )


def make_entry(making: Making, lesson: Lesson, scratch: Path) -> tuple[StoredEntry, Mapping[str, Tensor]]:
    """Solve and train an entry as the settings say, each kept only if the error on held-out windows falls.

    Returns:
        What is kept of it, and the weights that aren't those that surgery makes, as they are stored.
    """
    entry, settings, deciding = lesson.entry, making.settings, lesson.windows.deciding
    stored = torch_dtype(making.parent.dtype)
    initial = best = lesson.error(deciding)
    solved, trained, steps, changed = None, None, 0, set[str]()
    if settings.solve and lesson.parameters:
        before = lesson.snapshot()
        tokens = making.ids_NT.numel()
        names = solve_entry(lesson, RepairSettings(), lambda F: is_dual(F, tokens), stored, scratch)
        error = lesson.error(deciding) if names else best
        if error < best:
            solved = best = error
            changed.update(names)
        else:
            lesson.restore(before)
    if settings.training.epochs and lesson.parameters:
        before = lesson.snapshot()
        steps = train_entry(lesson, settings.training, making.seed, making.dtype, best)
        lesson.round(stored)
        error = lesson.error(deciding)
        if error < best:
            trained = error
            changed.update(lesson.parameters)
        else:
            lesson.restore(before)
    about = StoredEntry(
        first=entry.first,
        last=entry.last,
        part=entry.part,
        choice=entry.choice,
        blocks=entry.blocks,
        removed=lesson.error(deciding, lesson.removed),
        initial=initial,
        solved=solved,
        trained=trained,
        steps=steps,
    )
    return about, {name: lesson.parameters[name].detach().to(stored).cpu() for name in sorted(changed)}


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(k, min(k + size, stop)) for k in range(start, stop, size)]
