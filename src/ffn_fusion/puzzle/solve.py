"""An entry's output projections in closed form, on the parent's own states: ``repair.fit``, place after place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ffn_fusion.blockwise.stack import Block
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blueprint import Part
from ffn_fusion.puzzle.lesson import Lesson, View
from ffn_fusion.repair.fit import SLOT, solve_place, take_change
from ffn_fusion.repair.places import Place
from ffn_fusion.repair.settings import RepairSettings

Dual = Callable[[int], bool]
"""Whether a place whose projection reads this many channels is solved by the dual."""


@torch.no_grad()
def solve_entry(lesson: Lesson, settings: RepairSettings, dual: Dual, stored: torch.dtype, scratch: Path) -> list[str]:
    """Solve each output projection that the entry changes, each on the states that those before it leave.

    The goal of an attention is the parent's state after the last attention that it stands for; that of an FFN the
    parent's state after the last block that its own block stands for.

    Args:
        stored: the dtype in which weights are kept; what is found is rounded to it.
        scratch: a folder for states on the way.

    Returns:
        The names of the changed tensors among ``lesson.parameters``.
    """
    changed: list[str] = []
    changes, last = set(lesson.entry.changes), len(lesson.blocks) - 1
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as place:
        walk = _Walk(lesson, Path(place))
        for k, (block, planned) in enumerate(zip(lesson.blocks, lesson.entry.kept_blocks, strict=True)):

            def solve(part: Part, goal: View, k: int = k, block: Block = block) -> None:
                there = Place(k, lesson.entry.last, "", part)
                width = block.projection(part).weight.shape[1]
                fit = solve_place(there, block, walk.state, goal, lesson.windows, settings, dual=dual(width))  # type: ignore[arg-type]
                if take_change(there, block, fit, lambda name: stored):
                    outputs = (t.key for t, _ in block.parameters(part) if t.role in ("out of", "out of bias"))
                    changed.extend(f"{k}.{key}" for key in outputs)

            if (k, "attention") in changes and planned.attention.changes and k == last:
                solve("attention", lesson.attended)
            if not (lesson.from_attention or block.side_by_side) and block.has_attention:
                walk.go(lambda x, block=block: x + block.attention(x))  # type: ignore[misc]
            if (k, "ffn") in changes:
                solve("ffn", lesson.before(planned.parent_blocks[1] + 1))
            if k < last:
                walk.go(lambda x, block=block: x + _rest(block, x))  # type: ignore[misc]
    return changed


def _rest(block: Block, x: Tensor) -> Tensor:
    """Return what a block adds to the state that its FFN reads."""
    added = block.ffn(x)
    return added + block.attention(x) if block.side_by_side else added


class _Walk:
    """The state between two sub-blocks of an entry, for all windows of this process, in a file."""

    def __init__(self, lesson: Lesson, folder: Path) -> None:
        self.state, self._parts, self._folder, self._steps = lesson.start, lesson.windows.parts, folder, 0

    def go(self, step: Callable[[Tensor], Tensor]) -> None:
        """Replace the state x of every window with step(x)."""
        states: FileStates | None = None
        for part in self._parts:
            x = self.state.read(SLOT, part)
            if states is None:
                count, folder = self._parts[-1].stop, self._folder / str(self._steps)
                states = FileStates(folder, count, x.shape[1], x.shape[2], x.dtype, x.device)
            states.write(SLOT, part, step(x))
        assert states
        states.turn()
        if self._steps:
            self.state.states.close()
        self._steps += 1
        self.state = View(states, SLOT, x.dtype)
