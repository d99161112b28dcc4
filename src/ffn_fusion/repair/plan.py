"""What a repair takes, before it begins: how every place is solved within the memory budget, bytes, FLOPs, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ffn_fusion.blockwise import Pace, Room
from ffn_fusion.blockwise.work import attention_flops, ffn_flops
from ffn_fusion.errors import OutputError, UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import sub_block_parameters
from ffn_fusion.repair.places import Place
from ffn_fusion.repair.program import Program, Step
from ffn_fusion.repair.settings import RepairSettings, Solver
from ffn_fusion.surgery.normal_equations import adding_bytes
from ffn_fusion.surgery.ridge import solve_path_bytes
from ffn_fusion.surgery.ridge_streamed import solve_streamed_bytes
from ffn_fusion.units import gib

ROWS = 2048
"""Tokens that go through a block together, if the budget allows."""
_DEFAULT_SHARE = 0.5  # of the free memory, where no budget is given
_SLACK = 1.1  # what allocators and buffers add
_STATES_OF_ROW = 16  # hidden states that one token has at a time
_WIDTHS_OF_ROW = 5  # FFN activations: gate, its activation, up, their product, and that once more in float32
_TYPICAL_LAMBDAS = 5  # of the path, before the error rises again
_FEWEST_COLUMNS = 64
_TYPICAL_STEPS = 14  # of conjugate gradients, for one lambda


@dataclass(frozen=True)
class PlannedPlace:
    """A place and the width of its projection's input; ``columns`` None: width^2 numbers are factorised, else so many
    output channels are solved at a time, without that matrix.
    """

    place: Place
    width: int
    columns: int | None

    @property
    def exact(self) -> bool:
        return self.columns is None


@dataclass(frozen=True)
class RepairPlan:
    """As one process carries it out; bytes, FLOPs, and seconds by the measured pace (None: not measured).

    ``rows`` tokens go through a block together; ``weight_bytes`` are read, ``disk_bytes`` needed for states.
    """

    places: tuple[PlannedPlace, ...]
    tokens: int
    processes: int
    rows: int
    peak_memory: int
    weight_bytes: int
    disk_bytes: int
    flops: float
    seconds: float | None = None

    def columns(self, place: Place) -> int | None:
        """How a place is solved; see ``PlannedPlace``."""
        return next(found.columns for found in self.places if found.place == place)


def make_plan(
    program: Program,
    teacher: ModelSpec,
    child: ModelSpec,
    settings: RepairSettings,
    *,
    windows: int,
    context: int,
    processes: int,
    stored: int,
    dtype: torch.dtype,
    room: Room,
    memory: int | None = None,
    pace: Pace | None = None,
) -> RepairPlan:
    """Decide for the ``windows`` windows of this process.

    Args:
        stored: bytes of a stored element.
        memory: bytes that the process may have; default: half of what's free.

    Raises:
        UsageError: the budget is too small, with what's enough. OutputError: the disk is too small for the states.
    """
    budget = memory if memory is not None else int(room.used + _DEFAULT_SHARE * room.free)
    hidden = child.hidden_size
    blocks = _blocks_bytes(program, teacher, child, dtype)

    def peak(rows: int, solver: int) -> int:
        widest = max(width(child, place) for place in places)
        activations = rows * (_STATES_OF_ROW * hidden + _WIDTHS_OF_ROW * widest) * dtype.itemsize
        return int(room.used + _SLACK * (blocks + activations + solver))

    places = [step.place for step in program.steps if step.place]
    rows = min(max(ROWS // context, 1), windows) * context
    found: list[PlannedPlace] = []
    need = 0
    for place in places:
        F = width(child, place)
        options = _ways(F, hidden, settings.solver)
        smallest = min(options, key=lambda way: way[1])
        columns, solver = next((way for way in options if peak(rows, way[1]) <= budget), smallest)
        found.append(PlannedPlace(place, F, columns))
        need = max(need, solver)
    while peak(rows, need) > budget and rows > context:
        rows -= context
    if peak(rows, need) > budget:
        raise UsageError(
            f"{gib(budget)} of memory are too little for this repair: it needs {gib(peak(rows, need))}, "
            f"for two blocks of each model and the widest place ({max(p.width for p in found):,} channels)",
            "give more (--memory), or a narrower fused width (--max-width)",
        )
    disk = 4 * windows * context * hidden * dtype.itemsize
    if disk > room.disk:
        raise OutputError(
            f"the states of {windows * context:,} tokens take {gib(disk)}, and {gib(room.disk)} are free on the disk",
            "free some space, or repair on less text (--tokens)",
        )
    flops = _flops(program, found, teacher, child, windows, context)
    return RepairPlan(
        places=tuple(found),
        tokens=windows * context,
        processes=processes,
        rows=rows,
        peak_memory=peak(rows, need),
        weight_bytes=_weights(program, teacher, child) * stored,
        disk_bytes=disk,
        flops=flops,
        seconds=flops / pace.block_flops if pace else None,
    )


def width(child: ModelSpec, place: Place) -> int:
    """Of the place's projection: what it reads."""
    block = child.blocks[place.block]
    if place.part == "attention":
        return child.heads * child.head_dim
    assert block.ffn
    return block.ffn.width


def _ways(F: int, hidden: int, solver: Solver) -> list[tuple[int | None, int]]:
    """(columns, bytes) of the ways to solve a place, the fastest first: exactly, or some columns at a time."""
    ways: list[tuple[int | None, int]] = []
    if solver != "streamed":
        ways.append((None, solve_path_bytes(F, hidden) + adding_bytes(F, hidden)))
    columns = hidden
    while solver != "exact" and columns >= min(_FEWEST_COLUMNS, hidden):
        ways.append((columns, solve_streamed_bytes(F, columns, hidden)))
        columns //= 2
    return ways


def _blocks_bytes(program: Program, teacher: ModelSpec, child: ModelSpec, dtype: torch.dtype) -> int:
    """One block of each model in use and the next one that's being read; before them the embedding, which stays where
    it's also the head.
    """
    embedding = teacher.vocab_size * teacher.hidden_size
    used = _neighbours(teacher, program.blocks("teacher")) + _neighbours(child, program.blocks("child"))
    return dtype.itemsize * (used + embedding if teacher.tied else max(used, embedding))


def _neighbours(spec: ModelSpec, blocks: Sequence[int]) -> int:
    """Parameters of two blocks in a row, at most."""
    sizes = [_block(spec, i) for i in blocks]
    return max((a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)), default=0)


def _block(spec: ModelSpec, i: int) -> int:
    return sub_block_parameters(spec, spec.blocks[i].attention) + sub_block_parameters(spec, spec.blocks[i].ffn)


def _weights(program: Program, teacher: ModelSpec, child: ModelSpec) -> int:
    blocks = sum(_block(teacher, i) for i in program.blocks("teacher"))
    blocks += sum(_block(child, i) for i in program.blocks("child"))
    return blocks + teacher.vocab_size * teacher.hidden_size


def _flops(
    program: Program, places: Sequence[PlannedPlace], teacher: ModelSpec, child: ModelSpec, windows: int, context: int
) -> float:
    walked = sum(
        windows * _step_flops(step, teacher if step.who == "teacher" else child, context) for step in program.steps
    )
    planned = {found.place: found for found in places}
    solved = 0.0
    for step in program.steps:
        if step.place:
            once = windows * _step_flops(step, child, context)
            solved += _place_flops(planned[step.place], child.hidden_size, windows * context, once)
    return walked + solved


def _step_flops(step: Step, spec: ModelSpec, context: int) -> float:
    attention = attention_flops(spec, step.block, context) if step.what != "ffn" else 0.0
    return attention + (ffn_flops(spec, step.block, context) if step.what != "attention" else 0.0)


def _place_flops(place: PlannedPlace, hidden: int, tokens: int, once: float) -> float:
    """The activations (``once``), then either G and a factorisation for every lambda, or both again for every step."""
    F = place.width
    if place.exact:
        factor = F**3 / 3 + 6.0 * F * F * hidden
        return once + tokens * (F * F + 2.0 * F * hidden) + (_TYPICAL_LAMBDAS + 1) * factor
    groups = -(-hidden // (place.columns or hidden))
    solves = _TYPICAL_LAMBDAS + 1 if groups == 1 else 2 * groups + _TYPICAL_LAMBDAS
    return solves * _TYPICAL_STEPS * (once + 4.0 * tokens * F * hidden / groups)
