"""What a repair will take: how every place is solved within the memory limit, bytes, FLOPs and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.work import attention_flops, ffn_flops, row_bytes
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import block_parameters, head_parameters, norms_after, sub_block_parameters
from ffn_fusion.repair.fit import CHANNELS
from ffn_fusion.repair.places import Place
from ffn_fusion.repair.program import Program, Step
from ffn_fusion.repair.settings import RepairSettings, Solver
from ffn_fusion.solve.dual import dual_bytes
from ffn_fusion.solve.normal_equations import adding_bytes
from ffn_fusion.solve.primal import primal_bytes

ROWS = 2048
"""Tokens that go through a block together, if there is enough memory."""
_TYPICAL_LAMBDAS = 5  # of the path, before the error rises again


@dataclass(frozen=True)
class EstimatedPlace:
    """A place, the width of its projection's input, and which form of the regression solves it."""

    place: Place
    width: int
    dual: bool


@dataclass(frozen=True)
class RepairEstimate:
    """What a repair will take on each process.

    Args:
        tokens: that this process works on.
        rows: tokens that go through a block together.
        weight_bytes: bytes of weights that are read.
        disk_bytes: bytes of states on disk.
        seconds: by the measured pace; None if it wasn't measured.
    """

    places: tuple[EstimatedPlace, ...]
    tokens: int
    processes: int
    rows: int
    peak_memory: int
    weight_bytes: int
    disk_bytes: int
    flops: float
    seconds: float | None = None

    def is_dual(self, place: Place) -> bool:
        """Return whether a place is solved by the dual."""
        return next(found.dual for found in self.places if found.place == place)


def make_estimate(
    program: Program,
    teacher: ModelSpec,
    child: ModelSpec,
    settings: RepairSettings,
    *,
    windows: int,
    context: int,
    tokens: int,
    processes: int,
    stored: int,
    dtype: torch.dtype,
    room: Room,
    pace: Pace | None = None,
) -> RepairEstimate:
    """Decide how this process carries out a repair.

    Args:
        windows: of this process.
        tokens: of all processes.
        stored: bytes of a stored element.

    Raises:
        UsageError: there is too little memory; says how much is enough.
        OutputError: the disk is too small for the states.
    """
    hidden = child.hidden_size
    places = [step.place for step in program.steps if step.place]
    widths = [width(child, place) for place in places]
    found = [EstimatedPlace(p, F, is_dual(F, tokens, settings.solver)) for p, F in zip(places, widths, strict=True)]
    blocks, widest = _blocks_bytes(program, teacher, child, dtype), max(widths)
    normed = norms_after(child)
    maps = [step.block for step in program.steps if step.what == "input"]
    # the matrices that read the state as they were, and as they are stored
    folding = 2 * dtype.itemsize * max((sub_block_parameters(child, child.blocks[k].ffn) for k in maps), default=0)

    def peak(rows: int, tokens: int) -> int:
        kept = widest * dtype.itemsize  # what a projection reads is kept
        solver = max(solver_bytes_of(F, tokens, hidden, settings.solver, dtype, normed) for F in widths)
        if maps:
            solver = max(solver + folding, solver_bytes_of(hidden, tokens, hidden, "primal", dtype, False))
        return room.peak(blocks + rows * (row_bytes(hidden, widest, dtype) + kept) + solver)

    rows = _rows(peak, room, widest, windows, context, tokens)
    disk = 4 * windows * context * hidden * dtype.itemsize  # both models' states, before and after a block
    disk += len(maps) * hidden * hidden * torch.float32.itemsize
    if disk > room.disk:
        states = f"the states of {windows * context:,} tokens"
        raise room.disk_full(states, disk, "free some space, or repair on less text (--tokens)")
    flops = _flops(program, found, teacher, child, windows, context, tokens)
    return RepairEstimate(
        places=tuple(found),
        tokens=windows * context,
        processes=processes,
        rows=rows,
        peak_memory=peak(rows, tokens),
        weight_bytes=_weights(program, teacher, child) * stored,
        disk_bytes=disk,
        flops=flops,
        seconds=flops / pace.block_flops if pace else None,
    )


def _rows(peak: Callable[[int, int], int], room: Room, widest: int, windows: int, context: int, tokens: int) -> int:
    """Tokens that go through a block together: as many whole windows as there is memory for.

    Args:
        peak: (rows, tokens) -> memory at the peak.

    Raises:
        UsageError: there is too little memory for one; says how much is enough.
    """
    rows = min(max(ROWS // context, 1), windows) * context
    while peak(rows, tokens) > room.budget and rows > context:
        rows -= context
    if peak(rows, tokens) > room.budget:
        raise room.too_little(
            "this repair",
            peak(rows, tokens),
            f"for two blocks of each model and the widest place ({widest:,} channels)",
            _way_out([n for n in range(context, tokens, context) if peak(rows, n) <= room.budget]),
        )
    return rows


def width(child: ModelSpec, place: Place) -> int:
    """Return the number of channels that the place's projection reads."""
    block = child.blocks[place.block]
    if place.part == "attention":
        assert block.attention
        return block.attention.heads * child.head_dim or child.hidden_size
    assert block.ffn
    return block.ffn.width or child.hidden_size


def is_dual(F: int, tokens: int, solver: Solver = "auto") -> bool:
    """Return whether the dual has fewer numbers, which makes it faster too. Free memory does not matter: processes may
    have different amounts, and all have to take the same form.
    """
    return solver == "dual" or (solver == "auto" and tokens < F)


def solver_bytes_of(F: int, tokens: int, hidden: int, solver: Solver, dtype: torch.dtype, normed: bool) -> int:
    """Return the bytes of a place's solver; ``normed``: a norm follows the projection (``repair.after_norm``)."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    if not is_dual(F, tokens, solver):
        judged = F * hidden * sums.itemsize * normed  # a change while its error after the norm is measured
        return primal_bytes(F, hidden, sums) + adding_bytes(F, hidden, sums) + judged
    states = 3 * tokens * hidden * dtype.itemsize  # of both models, and one of them while it is gathered
    states += 4 * tokens * hidden * sums.itemsize * normed  # what is wanted, and outputs before and after the norm
    return dual_bytes(tokens, F, hidden, sums) + states + 4 * tokens * min(F, CHANNELS) * sums.itemsize


def _way_out(fitting: Sequence[int]) -> str:
    fewer = f"fewer tokens (--tokens, at most {fitting[-1]:,})" if fitting else "smaller fused FFNs (--max-width)"
    return f"give more (--memory), or {fewer}"


def _blocks_bytes(program: Program, teacher: ModelSpec, child: ModelSpec, dtype: torch.dtype) -> int:
    """Return the bytes of one block of each model in use and of the next one that is being read; before them, of the
    embedding, which stays if it is also the head.
    """
    embedding = head_parameters(teacher)
    used = _neighbours(teacher, program.blocks("teacher")) + _neighbours(child, program.blocks("child"))
    return dtype.itemsize * (used + embedding if teacher.tied else max(used, embedding))


def _neighbours(spec: ModelSpec, blocks: Sequence[int]) -> int:
    """Return the most parameters of two consecutive blocks."""
    sizes = [block_parameters(spec, i) for i in blocks]
    return max((a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)), default=0)


def _weights(program: Program, teacher: ModelSpec, child: ModelSpec) -> int:
    blocks = sum(block_parameters(teacher, i) for i in program.blocks("teacher"))
    blocks += sum(block_parameters(child, i) for i in program.blocks("child"))
    return blocks + head_parameters(teacher)


def _flops(
    program: Program,
    places: Sequence[EstimatedPlace],
    teacher: ModelSpec,
    child: ModelSpec,
    windows: int,
    context: int,
    tokens: int,
) -> float:
    walked = sum(
        windows * _step_flops(step, teacher if step.who == "teacher" else child, context) for step in program.steps
    )
    planned = {found.place: found for found in places}
    solved = 0.0
    for step in program.steps:
        if step.what == "input":
            rows, hidden = windows * context, child.hidden_size
            factors = (_TYPICAL_LAMBDAS + 1) * (hidden**3 / 3 + 6.0 * hidden**3)
            solved += 3.0 * rows * hidden * hidden + factors
        if step.place:
            once = windows * _step_flops(step, child, context)
            solved += place_flops(planned[step.place], child.hidden_size, windows * context, tokens, once)
    return walked + solved


def _step_flops(step: Step, spec: ModelSpec, context: int) -> float:
    if step.what == "input":
        return 0.0
    attention = attention_flops(spec, step.block, context) if step.what != "ffn" else 0.0
    return attention + (ffn_flops(spec, step.block, context) if step.what != "attention" else 0.0)


def place_flops(place: EstimatedPlace, hidden: int, mine: int, tokens: int, once: float) -> float:
    """Return the FLOPs of the activations (``once``, and again for the dual's change), of this process's share of G or
    K, and of a factorisation for every lambda.
    """
    F, size = place.width, tokens if place.dual else place.width
    factors = (_TYPICAL_LAMBDAS + 1) * (size**3 / 3 + 6.0 * size * size * hidden)
    if place.dual:
        return 2 * once + mine * F * (tokens + 2.0 * hidden) + factors
    return once + mine * (F * F + 2.0 * F * hidden) + factors
