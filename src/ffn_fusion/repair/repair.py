"""Repair a child: calibrate, solve place after place, keep the new weights and what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffn_fusion.blockwise import Stack
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, torch_dtype
from ffn_fusion.data import TokenWindows
from ffn_fusion.errors import DataError
from ffn_fusion.families.layout import block_prefix
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.repair.places import Place, places
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.repair.walk import PlaceRepair, walk
from ffn_fusion.surgery.build import check_blueprint
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import Repairs, save_record, save_repair

_LEAST_WINDOWS = 4
"""Fewer can't be split into some to fit and some to decide by."""


@together
def repair_child(
    parent: Checkpoint,
    blueprint: Blueprint,
    texts: Sequence[TokenWindows],
    folder: Path,
    *,
    settings: RepairSettings | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Progress = silent,
) -> Repairs:
    """Solve the output projections of a child's changed FFNs anew; no gradient, one read of each model's weights.

    Args:
        texts: calibration windows, all of one length; as broad as the use. A share of them decides and isn't fitted.
        folder: where the new weights go; emptied first.
        device: with "cuda" and several processes, each takes a GPU of its own.
        progress: counts block evaluations over all windows.

    Returns:
        The repairs, to give to ``Child`` or ``build``.

    Raises:
        BlueprintError: the blueprint is of another model. DataError: too little text.
    """
    check_blueprint(parent, blueprint)
    settings = settings or RepairSettings()
    ids_NT = torch.from_numpy(np.concatenate([text.ids_NT for text in texts]))
    here = current()
    fitted, held_out = split_windows(len(ids_NT), settings.held_out)
    mine = fitted[here.rank :: here.world], held_out[here.rank :: here.world]
    if len(ids_NT) < _LEAST_WINDOWS * here.world:
        raise DataError(
            f"{len(ids_NT)} windows of text are too few to repair on",
            f"give at least {_LEAST_WINDOWS} a process: more tokens (--tokens), or shorter windows (--context)",
        )
    place = here.device(device)
    child = Child(parent, blueprint, 1)
    if not here.rank:
        shutil.rmtree(folder, ignore_errors=True)
    files, rows = {}, []
    ours, theirs = Stack(child, dtype=dtype, device=place), Stack(parent, dtype=dtype, device=place)
    for found in walk(
        theirs,
        ours,
        blueprint,
        ids_NT[mine[0] + mine[1]],
        len(mine[0]),
        settings,
        on_progress=lambda done, total: progress("repair", done, total),
    ):
        name = f"{block_prefix(found.place.block)}mlp.down_proj.weight"
        if found.weight is not None and not here.rank:
            files[name] = save_repair(folder, name, found.weight.to(torch_dtype(child.tensors[name].dtype)).cpu())
        rows.append(_row(found))
    if not here.rank:
        calibration = {"texts": [text.label for text in texts], "tokens": int(ids_NT.numel())}
        record = {
            "version": 1,
            "calibration": calibration,
            "settings": asdict(settings),
            "files": files,
            "places": rows,
        }
        save_record(folder, record)
    here.gather([None])  # the others read what the first has written
    return Repairs(folder)


def planned_places(blueprint: Blueprint, settings: RepairSettings) -> tuple[Place, ...]:
    """Where a repair will take place."""
    return places(blueprint, settings.horizon)


def split_windows(count: int, share: float) -> tuple[list[int], list[int]]:
    """Which windows are fitted and which decide: those are taken evenly from all texts, however many processes there
    are.
    """
    held = min(max(1, round(share * count)), count - 1)
    chosen = sorted({int((k + 0.5) * count / held) for k in range(held)})
    return [n for n in range(count) if n not in set(chosen)], chosen


def _row(found: PlaceRepair) -> dict[str, Any]:
    """What was measured at a place, for the record."""
    fit = found.fit
    return {
        **asdict(found.place),
        "width": found.width,
        "lambda": fit.ridge,
        "held_out_error": fit.held_out_error,
        "reason": fit.reason,
    }
