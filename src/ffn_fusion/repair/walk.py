"""The walk: teacher and child go side by side; at each place, the output projection is fitted in closed form.

With X the child's own state before the sub-block (with all earlier repairs), H [N, F] what its output projection reads
and Y the teacher's state after the same sub-block:

    W = argmin  sum_t w_t |h_t W^T - (y_t - x_t)|^2 + lambda s |W - W0|^2

Each model's weights are read once, and only as far as the last place. States are kept in files, and each finished step
is noted, so an interrupted walk resumes after its last step, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Block, ReadAhead, Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blockwise.steps_done import StepsDone
from ffn_fusion.repair.fit import SLOT, Windows, error_left, solve_place, take_change
from ffn_fusion.repair.inputs import Channels, InputMaps, solve_input
from ffn_fusion.repair.places import Place
from ffn_fusion.repair.program import Program, Step, Who
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.solve.choice import Fit

Progress = Callable[[int], None]


@dataclass(frozen=True)
class PlaceRepair:
    """What was found at one place; ``tensors`` are the child's new ones by name, empty if the old ones stay.

    ``inputs``: parent block -> the error left of the input of its FFN on windows that weren't fitted, where maps of
    inputs were taken.
    """

    place: Place
    width: int
    fit: Fit
    tensors: dict[str, Tensor]
    inputs: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Teacher and child, each with its states."""

    teacher: Stack
    child: Stack
    theirs: FileStates
    ours: FileStates

    def of(self, who: Who) -> tuple[Stack, FileStates]:
        return (self.teacher, self.theirs) if who == "teacher" else (self.child, self.ours)


@torch.inference_mode()
def walk(
    pair: Pair,
    program: Program,
    ids_NT: Tensor,
    windows: Windows,
    settings: RepairSettings,
    *,
    mapped: Mapping[int, Channels] = MappingProxyType({}),
    dual: Callable[[Place], bool] = lambda place: False,
    stored: Callable[[str], torch.dtype] = lambda name: torch.float32,
    journal: Journal | None = None,
    on_step: Progress = lambda done: None,
) -> Iterator[PlaceRepair]:
    """Repair place after place; yields each one as it is found, and notes it as done when the next one is asked for.

    Args:
        ids_NT: the windows of this process.
        mapped: the FFNs whose inputs are mapped (``repair.inputs.channels_to_map``), as in the program.
        dual: whether a place is solved by the dual (``repair.fit.solve_place``).
        stored: (name) -> the dtype in which the child stores that tensor.
        journal: where finished steps are noted.
        on_step: called with the number of steps done.
    """
    journal = Journal() if journal is None else journal
    maps = InputMaps(mapped, journal)
    steps_done = StepsDone(journal, theirs=pair.theirs, ours=pair.ours)
    done = steps_done.resume()
    if not done:
        for part in windows.parts:
            pair.theirs.write(SLOT, part, pair.teacher.embed(ids_NT[part]))
        pair.theirs.turn()
    pair.teacher.forget_embedding()
    steps = program.steps
    hands = {who: _Hand(pair.of(who)[0], steps[done:], who) for who in ("teacher", "child")}
    for number in range(done, len(steps)):
        step = steps[number]
        if number == program.fork:
            _copy(pair, windows)
        block = hands[step.who].take(step.block)
        if step.source is not None:
            maps.save(step.source, solve_input(block, pair.ours, pair.theirs, windows, settings))
            steps_done.note(number + 1)
            on_step(number + 1)
            continue
        if step.place:
            before = _kept(block, step.place)
            new = _map_inputs(maps, step.place, block, pair, windows, settings, stored)
            fit = solve_place(step.place, block, pair.ours, pair.theirs, windows, settings, dual=dual(step.place))
            tensors = new | take_change(step.place, block, fit, stored)
            if not settings.in_order:
                _restore(block, step.place, before)
                if new:
                    maps.swap()
            inputs = maps.errors(step.block) if new else {}
            yield PlaceRepair(step.place, _width(step, block), fit, tensors, inputs)
        _advance(pair.of(step.who)[1], windows, block, step)
        steps_done.note(number + 1)
        on_step(number + 1)


def _map_inputs(
    maps: InputMaps,
    place: Place,
    block: Block,
    pair: Pair,
    windows: Windows,
    settings: RepairSettings,
    stored: Callable[[str], torch.dtype],
) -> dict[str, Tensor]:
    """Put the maps of a place's inputs in, unless its error on windows that weren't fitted is then larger."""
    if place.part != "ffn":
        return {}
    around = (pair.ours, pair.theirs, windows, settings)
    new = maps.put_in(place.block, block, stored)
    if not new:
        return {}
    after = error_left(place, block, *around)
    maps.swap()
    before = error_left(place, block, *around)
    if not after < before:
        return {}
    maps.swap()
    return new


class _Hand:
    """Hands out a model's blocks in order; a block stays loaded until the next one is asked for."""

    def __init__(self, stack: Stack, steps: tuple[Step, ...], who: Who) -> None:
        self._ahead = ReadAhead(stack, list(dict.fromkeys(step.block for step in steps if step.who == who)))
        self._at = -1
        self._block: Block | None = None

    def take(self, i: int) -> Block:
        if i != self._at or self._block is None:
            self._block = None  # freed before the next one is loaded
            self._at, self._block = i, self._ahead.take(i)
        return self._block


def _copy(pair: Pair, windows: Windows) -> None:
    for part in windows.parts:
        pair.ours.write(SLOT, part, pair.theirs.read(SLOT, part))
    pair.ours.turn()


def _advance(states: FileStates, windows: Windows, block: Block, step: Step) -> None:
    for part in windows.parts:
        x = states.read(SLOT, part)
        if step.what == "block":
            added = block.contributions(x)
            x = x + added.attention + added.ffn
        else:
            x = x + (block.attention(x) if step.what == "attention" else block.ffn(x))
        states.write(SLOT, part, x)
    states.turn()


def _width(step: Step, block: Block) -> int:
    assert step.place
    return int(block.projection(step.place.part).weight.shape[1])


def _kept(block: Block, place: Place) -> list[Tensor]:
    return [parameter.data.clone() for parameter in block.projection(place.part).parameters()]


def _restore(block: Block, place: Place, before: list[Tensor]) -> None:
    for parameter, old in zip(block.projection(place.part).parameters(), before, strict=True):
        parameter.data.copy_(old)
