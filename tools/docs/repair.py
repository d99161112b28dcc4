"""docs/repair.md."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

from tools.docs.llamas import llamas
from tools.docs.tables import table

if TYPE_CHECKING:
    import torch

    from ffn_fusion.families import ModelSpec
    from ffn_fusion.repair.estimate import RepairEstimate

_GIB, _TERA = 1 << 30, 1e12

# model: the first and the last attention that's dropped
_DROPPED = {"Llama-3.1-8B": (20, 25), "Llama-3.1-70B": (50, 57), "Llama-3.1-405B": (90, 97)}

# machine: memory, FLOP/s, processes
_MACHINES = {
    "CPU, 24 GB": (22 * _GIB, 0.13 * _TERA, 1),
    "1 x H100": (78 * _GIB, 60 * _TERA / 2, 1),
    "8 x H100, each": (78 * _GIB, 60 * _TERA / 2, 8),
}


def repair_scale() -> str:
    """What a repair takes on models that aren't here, by the planner that ``--dry-run`` prints."""
    columns = ("model", "machine", "widest", "by the dual", "peak memory", "disk", "PFLOPs", "time")
    specs = llamas()
    rows = []
    for model, (first, last) in _DROPPED.items():
        said = f"{model}, attentions {first}-{last} dropped"
        rows += [(said, *_cells(name, specs[model], first, last)) for name in _MACHINES]
    return table(columns, rows)


def _cells(machine: str, spec: ModelSpec, first: int, last: int) -> tuple[str, ...]:
    from ffn_fusion.units import duration, gb, gib

    found = _widest(machine, spec, first, last)
    if found is None:
        return (machine, "too little memory", "", "", "", "", "")
    estimate, dtype = found
    dual = sum(place.dual for place in estimate.places)
    return (
        f"{machine}, {str(dtype).removeprefix('torch.')}",
        f"{max(place.width for place in estimate.places):,}",
        f"{dual} of {len(estimate.places)}",
        gib(estimate.peak_memory), gb(estimate.disk_bytes),
        f"{estimate.flops / 1e15:,.1f}", duration(estimate.seconds or 0),
    )  # fmt: skip


def _widest(machine: str, spec: ModelSpec, first: int, last: int) -> tuple[RepairEstimate, torch.dtype] | None:
    """The estimate with as many FFNs fused as there's memory for; None without memory for two."""
    import torch

    from ffn_fusion.blockwise.pace import Pace
    from ffn_fusion.blockwise.room import Room
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.errors import UsageError
    from ffn_fusion.families.child_spec import child_spec
    from ffn_fusion.repair.estimate import make_estimate
    from ffn_fusion.repair.places import places
    from ffn_fusion.repair.program import make_program
    from ffn_fusion.repair.settings import RepairSettings

    memory, flops, processes = _MACHINES[machine]
    tokens = RepairSettings().tokens
    room = Room(used=_GIB // 2, free=memory, cache=memory, disk=4 << 40, limit=memory)
    width = spec.blocks[0].ffn.width if spec.blocks[0].ffn else 0
    for together, dtype in product((last - first, 4, 3, 2), (torch.float32, torch.bfloat16)):
        blueprint = Blueprint.identity(spec.parent("")).apply(
            range(first, last + 1), [(first, last - 1)], max_width=together * width
        )
        program = make_program(blueprint, places(blueprint, 6, attention=True), range(len(spec.blocks)))
        with suppress(UsageError):
            estimate = make_estimate(
                program, spec, child_spec(spec, blueprint, 1), RepairSettings(),
                windows=tokens // 512 // processes, context=512, tokens=tokens, processes=processes,
                stored=2, dtype=dtype,
                room=room, pace=Pace(flops, flops, 1e9),
            )  # fmt: skip
            return estimate, dtype
    return None
