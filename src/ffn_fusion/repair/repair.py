"""Repair a child: solve place after place on calibration text, and keep the new weights and what was measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.pace import measure_pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.notes import Notes
from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import DataError
from ffn_fusion.families import require
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.repair.estimate import ROWS, RepairEstimate, make_estimate
from ffn_fusion.repair.fit import Windows
from ffn_fusion.repair.inputs import Channels, channels_to_map
from ffn_fusion.repair.places import Place, places
from ffn_fusion.repair.program import Program, make_program
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.repair.walk import Pair, PlaceRepair, walk
from ffn_fusion.surgery.build import build_id, check_blueprint
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import Repairs, save_record, save_repair

_LEAST_WINDOWS = 4
"""Fewer can't be split into windows to fit and windows to decide by."""
_WALK, _ROWS = "walk", "places.json"


@dataclass(frozen=True)
class Repair:
    """A repair of a child: output projections of its changed blocks are fitted on text, in closed form.

    Args:
        texts: calibration windows, all of one length; as broad as the use. A share of them decides and isn't fitted.
        folder: where the new weights go. A call that was interrupted there continues from its last step; anything else
            that the folder holds is removed.
        dtype: of the forward passes.
        device: with "cuda" and several processes, each takes a GPU of its own.
        memory: bytes that a process may use; None: half of the free memory.
        base: weights that the child has before the repair, e.g. those of a library; others are as surgery makes them.

    Raises:
        BlueprintError: the blueprint is of another model. DataError: too little text.
    """

    parent: Checkpoint
    blueprint: Blueprint
    texts: Sequence[TokenWindows]
    folder: Path
    settings: RepairSettings = RepairSettings()
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    memory: int | None = None
    base: Repairs | None = None

    def __post_init__(self) -> None:
        check_blueprint(self.parent, self.blueprint)
        require(self.parent.spec, "repair")
        count, world = len(self.ids_NT), current().world
        if count < _LEAST_WINDOWS * world:
            raise DataError(
                f"{count} windows of text are too few to repair on",
                f"give at least {_LEAST_WINDOWS} a process: more tokens (--tokens), or shorter windows (--context)",
            )

    @cached_property
    def ids_NT(self) -> Tensor:  # noqa: N802
        return torch.from_numpy(np.concatenate([text.ids_NT for text in self.texts]))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        attention = self.settings.attention and not self.parent.spec.side_by_side
        return places(self.blueprint, self.settings.horizon, attention=attention)

    @cached_property
    def child(self) -> Child:
        return Child(self.parent, self.blueprint, 1, self.base)

    @cached_property
    def teacher(self) -> Checkpoint | Child:
        return self.parent if self.settings.target == "parent" else Child(self.parent, self.blueprint.unfused(), 1)

    @cached_property
    def stacks(self) -> tuple[Stack, Stack]:
        """Teacher and child; every block is needed once, so none is kept."""
        device = current().device(self.device)
        teacher, child = (Stack(s, dtype=self.dtype, device=device, resident=False) for s in (self.teacher, self.child))
        return teacher, child

    @cached_property
    def program(self) -> Program:
        teacher = self.teacher
        ends = (
            [block.parent_blocks[1] for block in teacher.blueprint.kept_blocks]
            if isinstance(teacher, Child)
            else list(range(len(teacher.spec.blocks)))
        )
        return make_program(
            self.blueprint, self.places, ends, side_by_side=self.parent.spec.side_by_side, mapped=self.mapped
        )

    @cached_property
    def mapped(self) -> dict[int, Channels]:
        """The FFNs whose inputs are mapped, by child block."""
        return channels_to_map(self.blueprint, self.parent.spec) if self.settings.inputs else {}

    @cached_property
    def mine(self) -> tuple[list[int], list[int]]:
        """The windows of this process: those that are fitted, and those that decide."""
        here = current()
        fitted, deciding = split_windows(len(self.ids_NT), self.settings.held_out)
        return fitted[here.rank :: here.world], deciding[here.rank :: here.world]

    def estimate(self, *, timed: bool = True) -> RepairEstimate:
        """Return what a repair with at least one place will take.

        Args:
            timed: also estimate the seconds, which takes a second or two.

        Raises:
            UsageError: too little memory. OutputError: the disk is too small.
        """
        teacher, child = self.stacks
        context = self.ids_NT.shape[1]
        return make_estimate(
            self.program,
            teacher.spec,
            child.spec,
            self.settings,
            windows=len(self.mine[0]) + len(self.mine[1]),
            context=context,
            tokens=self.ids_NT.numel(),
            processes=current().world,
            stored=torch_dtype(self.parent.dtype).itemsize,
            dtype=self.dtype,
            room=Room.here(teacher.device, self.folder, self.memory),
            pace=measure_pace(teacher, context, ROWS) if timed else None,
        )

    def carry_out(self, plan: RepairEstimate | None, progress: Progress) -> Repairs:
        """Repair place after place, as the plan says; None if there are no places."""
        here = current()
        ledger = _Ledger(self.folder, self._key(plan)) if not here.rank else None
        here.gather([None])  # the folder exists now, and holds nothing else
        if plan:
            for found in self._walk(plan, progress):
                if ledger:
                    ledger.add(found)
        if ledger:
            tokens = {"texts": [text.label for text in self.texts], "tokens": int(self.ids_NT.numel())}
            ledger.finish({"version": 1, "calibration": tokens, "settings": self.settings.method()}, self.places)
        here.gather([None])  # the others read what the first has written
        return Repairs(self.folder).over(self.base)

    def _walk(self, plan: RepairEstimate, progress: Progress) -> Any:
        here = current()
        teacher, child = self.stacks
        fitted, deciding = self.mine
        ids_NT = self.ids_NT[fitted + deciding]
        N, T = ids_NT.shape
        place = self.folder / _WALK / f"process-{here.rank}-of-{here.world}"
        journal = Journal(place / "notes", self._key(plan))
        size = max(1, plan.rows // T)
        windows = Windows(_slices(0, len(fitted), size), _slices(len(fitted), N, size))
        theirs, ours = (
            FileStates(place / who, N, T, child.spec.hidden_size, self.dtype, child.device)
            for who in ("teacher", "child")
        )
        try:
            yield from walk(
                Pair(teacher, child, theirs, ours),
                self.program,
                ids_NT,
                windows,
                self.settings,
                mapped=self.mapped,
                dual=plan.is_dual,
                stored=lambda name: torch_dtype(self.child.tensors[name].dtype),
                journal=journal,
                on_step=lambda done: progress("repair", done, len(self.program.steps)),
            )
        finally:
            theirs.close(keep=True)
            ours.close(keep=True)

    def _key(self, plan: RepairEstimate | None) -> str:
        """Return a hash of everything that the result depends on."""
        words = [
            build_id(self.child),
            self.parent.files_state,
            self.settings.method(),
            str(self.dtype),
            str(self.device),
            [plan.rows, [found.dual for found in plan.places]] if plan else None,
            torch.__version__,
            version("ffn-fusion"),
            current().world,
            list(self.ids_NT.shape),
        ]
        return hashlib.sha256(json.dumps(words).encode() + self.ids_NT.numpy().tobytes()).hexdigest()


@together
def repair_child(
    repair: Repair, *, on_plan: Callable[[RepairEstimate], None] | None = None, progress: Progress = silent
) -> Repairs:
    """Fit output projections of a child's changed blocks; no gradients, and each model's weights are read once.

    Args:
        on_plan: called with the estimate before the work begins, on the first process; it costs a second or two.
        progress: counts steps of the walk: sub-blocks that all windows have gone through.

    Returns:
        The repairs, to give to ``Child`` or ``build``.

    Raises:
        UsageError: too little memory. OutputError: the disk is too small, or full.
    """
    plan = repair.estimate(timed=on_plan is not None) if repair.places else None
    if plan and on_plan:
        on_plan(plan)
    return repair.carry_out(plan, progress)


class _Ledger:
    """The folder's weights and what was measured, place by place; only the first process writes there."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._notes = folder, Notes(folder, key, _ROWS)
        self._notes.claim()

    def add(self, found: PlaceRepair) -> None:
        files = {name: save_repair(self._folder, name, tensor) for name, tensor in found.tensors.items()}
        self._notes.write({**self._notes.values, found.place.name: {"row": _row(found), "files": files}})

    def finish(self, record: dict[str, Any], places: Sequence[Place]) -> None:
        rows = [self._notes.values[place.name] for place in places]
        files = {name: file for row in rows for name, file in row["files"].items()}
        save_record(self._folder, {**record, "files": files, "places": [row["row"] for row in rows]})
        shutil.rmtree(self._folder / _WALK, ignore_errors=True)
        (self._folder / _ROWS).unlink(missing_ok=True)


def split_windows(count: int, share: float) -> tuple[list[int], list[int]]:
    """Return which windows are fitted and which decide. The latter are evenly spaced over all texts, whatever the
    number of processes.
    """
    held = min(max(1, round(share * count)), count - 1)
    chosen = sorted({int((k + 0.5) * count / held) for k in range(held)})
    return [n for n in range(count) if n not in set(chosen)], chosen


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(k, min(k + size, stop)) for k in range(start, stop, size)]


def _row(found: PlaceRepair) -> dict[str, Any]:
    """Return what was measured at a place, for the record."""
    fit = found.fit
    return {
        **asdict(found.place),
        "width": found.width,
        "lambda": fit.ridge,
        "held_out_error": fit.held_out_error,
        "residual": fit.residual,
        "reason": fit.reason,
        **({"inputs": found.inputs} if found.inputs else {}),
    }
