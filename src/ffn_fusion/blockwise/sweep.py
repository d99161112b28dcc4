"""One pass over the blocks with many variants of the hidden state: every block is loaded once, and a variant runs only
from the block on where it differs. Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ffn_fusion.blockwise.edits import AllWindows, Edit
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Block, Contributions, ReadAhead, Stack
from ffn_fusion.blockwise.states import MemoryStates, Slot, States

PARENT = ""
"""The parent's name among the variants."""
ROWS = 4096
"""Tokens in one matmul: enough to be compute-bound, small enough for the FFN's activations."""

Figures = Mapping[str, Tensor]
Record = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Observation:
    """What can be observed at a block for a few windows. The tensors are live: copy what is to be kept.

    Args:
        variant: the variant's name; ``PARENT`` for the parent itself.
        x: the state [n, T, D] before the block, which is the input of the attention's norm; x + added.attention is the
            input of the FFN's norm.
        added: what the block adds in this variant.
        parent: what the block adds in the parent.
    """

    block: int
    variant: str
    x: Tensor
    added: Contributions
    parent: Contributions


Observer = Callable[[Observation], Figures]
"""Returns figures by name, one per token [n, T]; the sweep keeps them (see ``Swept.record``)."""


@dataclass(frozen=True)
class Final:
    """The last hidden state of a variant, before the final norm, and the stack whose head reads it."""

    stack: Stack
    states: States
    slot: Slot

    def read(self, windows: slice, tokens: slice = slice(None)) -> Tensor:
        return self.states.read(self.slot, windows, tokens)


@dataclass(frozen=True)
class Swept:
    """The results of a sweep: last states, and what the observer saw."""

    stack: Stack
    states: States
    journal: Journal
    windows: int
    kept: tuple[str, ...]

    def final(self, name: str = PARENT) -> Final:
        return Final(self.stack, self.states, (name, 0))

    def state(self, name: str = PARENT) -> Tensor:
        """Return the whole last state [N, T, D], which must fit into memory."""
        return self.final(name).read(slice(0, self.windows))

    def record(self, i: int) -> Record:
        """Return what was observed at block i: "variant/figure" -> [N, T]; the parent's figures are "/figure"."""
        record = self.journal.load(f"block-{i:04d}")
        assert record is not None
        return record


@torch.inference_mode()
def sweep(
    stack: Stack,
    ids_NT: Tensor,
    edits: Mapping[str, Edit],
    *,
    observe: Observer | None = None,
    keep: Callable[[str], bool] = lambda name: True,
    states: States | None = None,
    journal: Journal | None = None,
    rows: int = ROWS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Swept:
    """Run the parent and every edited variant to the last block.

    Args:
        observe: called at every block for the parent and each variant.
        keep: whether the last state of a variant is kept; the others are only observed.
        states: where states are kept between blocks (default: in memory).
        journal: records finished blocks; a journal of the same sweep resumes it. A journal that says everything is
            finished holds the observations, but no last states.
        rows: tokens that go through a block together, at least one window's.
        on_progress: called with (finished block evaluations of one window, total).
    """
    N, T = ids_NT.shape
    states = MemoryStates(N) if states is None else states
    journal = Journal() if journal is None else journal
    pass_ = _Pass(stack, edits, observe, keep, states, _slices(N, max(1, rows // T)), max(1, rows // T))
    total = N * evaluations(len(stack), edits.values())
    kept = tuple(name for name in edits if keep(name))
    swept = Swept(stack, states, journal, N, kept)
    if journal.values.get("finished") and _whole(journal, len(stack)):
        return swept
    done = int(journal.values.get("blocks", 0))
    if done and not (_whole(journal, done) and states.restore(journal.values["states"])):
        done = 0  # the disk lost something
    if not done:
        for part in pass_.parts:
            states.write((PARENT, 0), part, stack.embed(ids_NT[part]))
        states.turn()
    stack.forget_embedding()
    loader = ReadAhead(stack, range(done, len(stack)))
    evaluated = N * sum(_evaluations_at(i, edits.values()) for i in range(done))
    for i in range(done, len(stack)):
        began = time.monotonic()
        record: dict[str, npt.NDArray[np.float32]] = {}
        for part, name, figures, count in pass_.block(i, loader.take(i)):
            for figure, values in figures.items():
                table = record.setdefault(f"{name}/{figure}", np.empty((N, T), np.float32))
                table[part] = values.float().cpu().numpy()
            evaluated += count
            on_progress(evaluated, total)
        for edit in edits.values():
            if edit.last == i:
                edit.release()
        journal.save(f"block-{i:04d}", record)
        states.turn(time.monotonic() - began)
        journal.write({"blocks": i + 1, "states": states.stamp()})
    return swept


def final_states(stack: Stack, ids_NT: Tensor) -> Tensor:
    """Return the last hidden state, before the final norm: [N, T] -> [N, T, D]."""
    return sweep(stack, ids_NT, {}).state()


def evaluations(blocks: int, edits: Iterable[Edit]) -> int:
    """Return the block evaluations of a sweep per window: the parent's, and each variant's from its change on."""
    return blocks + sum(blocks - 1 - edit.last for edit in edits)


def _whole(journal: Journal, blocks: int) -> bool:
    """Return whether the observations at the first blocks are complete."""
    return all(journal.load(f"block-{i:04d}") is not None for i in range(blocks))


def _evaluations_at(i: int, edits: Iterable[Edit]) -> int:
    return 1 + sum(edit.last < i for edit in edits)


@dataclass(frozen=True)
class _Pass:
    stack: Stack
    edits: Mapping[str, Edit]
    observe: Observer | None
    keep: Callable[[str], bool]
    states: States
    parts: Sequence[slice]
    windows_at_once: int

    def block(self, i: int, block: Block) -> Iterator[tuple[slice, str, Figures, int]]:
        """Run everything through block i; yields (windows, variant, figures, window evaluations)."""
        live = [name for name, edit in self.edits.items() if edit.last < i]
        under_way = self._under_way(i)
        last = i == len(self.stack) - 1
        windows = AllWindows(tuple(self.parts), partial(self._read, PARENT, 0))
        for name, (giver, _) in under_way.items():
            self.edits[name].prepare(i, block, windows, partial(self._read, giver))
        for part in self.parts:
            x = self.states.read((PARENT, 0), part)
            parent = block.contributions(x)
            yield part, PARENT, self._figures(i, PARENT, x, parent, parent), len(x)
            together = max(1, self.windows_at_once // len(x))
            for names in (live[k : k + together] for k in range(0, len(live), together)):
                group = torch.cat([self.states.read((name, 0), part) for name in names])
                added = block.contributions(group)
                after = group + added.attention
                after += added.ffn
                for k, name in enumerate(names):
                    mine = slice(k * len(x), (k + 1) * len(x))
                    moved = Contributions(added.attention[mine], added.ffn[mine])
                    if not last or self.keep(name):
                        self.states.write((name, 0), part, after[mine])
                    yield part, name, self._figures(i, name, group[mine], moved, parent), len(x)
            for name, (giver, count) in under_way.items():
                carried = tuple(self._read(giver, k, part) for k in range(count))
                for k, tensor in enumerate(self.edits[name].advance(i, block, part, x, parent, carried)):
                    self.states.write((name, k), part, tensor)
            self.states.write((PARENT, 0), part, x + parent.attention + parent.ffn)

    def _under_way(self, i: int) -> dict[str, tuple[str, int]]:
        """Return the edits that block i belongs to, each with the edit whose carried tensors it reads, and how many.

        An edit comes after those that it lends to: once it has written, what it carried may be gone.
        """
        found: dict[str, tuple[str, int]] = {}
        names = [name for name, edit in self.edits.items() if edit.first <= i <= edit.last]
        for name in sorted(names, key=lambda name: (self.edits[name].lender or name, self.edits[name].lender is None)):
            giver = name if self.states.count(name) else self.edits[name].lender or name
            found[name] = giver, self.states.count(giver) if i > self.edits[name].first else 0
        return found

    def _read(self, name: str, k: int, part: slice) -> Tensor:
        return self.states.read((name, k), part)

    def _figures(self, i: int, name: str, x: Tensor, added: Contributions, parent: Contributions) -> Figures:
        return self.observe(Observation(i, name, x, added, parent)) if self.observe else {}


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
