"""docs/larger-than-memory.md."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from tools.docs.llamas import llamas
from tools.docs.tables import kept, table

if TYPE_CHECKING:
    from ffn_fusion.families import ModelSpec

_GIB, _TERA = 1 << 30, 1e12


@dataclass(frozen=True)
class _Machine:
    """``memory`` where it's computed, and for the cache; FLOPs and bytes of the disk a second, of each process."""

    memory: int
    cache: int
    flops: float
    disk: float
    processes: int = 1
    dtype: str = "bfloat16"


_MACHINES = {
    "CPU, 2 cores, 24 GB": _Machine(22 * _GIB, 11 * _GIB, 0.13 * _TERA, 0.5e9, dtype="float32"),
    "RTX 4090, 64 GB host": _Machine(23 * _GIB, 30 * _GIB, 165 * _TERA / 2, 5e9),
    "1 x H100, 256 GB host": _Machine(78 * _GIB, 120 * _GIB, 989 * _TERA / 2, 6e9),
    "8 x H100, 2 TB host": _Machine(78 * _GIB, 125 * _GIB, 989 * _TERA / 2, 6e9 / 8, processes=8),
}


def scale_table() -> str:
    """What an analysis takes on machines that aren't here, by the planner that ``--dry-run`` prints."""
    columns = (
        "model", "machine", "weights read", "chunks", "states, of them to disk", "disk", "peak memory", "PFLOPs",
        "time",
    )  # fmt: skip
    return table(columns, ((model, *_scale(spec, name)) for model, spec in llamas().items() for name in _MACHINES))


def _scale(spec: ModelSpec, name: str) -> tuple[str, ...]:
    """The cells of a model on a machine."""
    import torch

    from ffn_fusion.blockwise.edits import RemoveAttention, RemoveBlock, RemoveFfn
    from ffn_fusion.blockwise.pace import Pace
    from ffn_fusion.blockwise.room import Room
    from ffn_fusion.blockwise.schedule import make_schedule
    from ffn_fusion.blockwise.work import count_work
    from ffn_fusion.errors import UsageError
    from ffn_fusion.families.layout import model_tensors
    from ffn_fusion.units import duration, gb, gib

    machine = _MACHINES[name]
    blocks = len(spec.blocks)
    edits = [kind(i) for i in range(blocks) for kind in (RemoveBlock, RemoveAttention, RemoveFfn)]
    work = count_work(spec, edits, scored=blocks, context=512)
    windows = 32 // machine.processes
    options: dict[str, Any] = {
        "windows": windows,
        "stored": 2 * sum(prod(shape) for shape in model_tensors(spec).values()),
        "room": Room(used=_GIB // 2, free=machine.memory, cache=machine.cache, disk=4 << 40, limit=machine.memory),
        "in_files": True,
    }
    try:
        plan = make_schedule(work, dtype=getattr(torch, machine.dtype), **options)
    except UsageError:
        name = f"{name}, bfloat16"
        plan = make_schedule(work, dtype=torch.bfloat16, **options)
    seconds = Pace(machine.flops, machine.flops, machine.disk).seconds(work, plan, windows)
    total = windows * (work.block_flops + work.head_flops) * machine.processes
    return (
        name + (", each" if machine.processes > 1 else ""), gb(plan.weight_bytes), str(plan.chunks),
        f"{gb(plan.moved_bytes)}, {gb(plan.spilled_bytes)}", gb(plan.disk_bytes), gib(plan.peak_memory),
        f"{total / 1e15:,.0f}", duration(seconds),
    )  # fmt: skip


def analysis_results() -> str:
    """What benchmarks/analysis.py printed, from docs/results/analysis.json."""
    found = kept("analysis")
    ratio, large = found["ratio"]["figures"], found["large"]["figures"]
    names = {"matrix": "block dependency matrix", "both": "with replace-1 of every attention"}
    rows = []
    for key, what in names.items():
        seconds = (f"{ratio[f'{whose}_{key}_seconds']:.0f} s" for whose in ("naive", "our"))
        ratios = (f"{ratio[f'{which}_{key}']:.2f}" for which in ("ratio", "ideal_ratio"))
        rows.append((what, *seconds, *ratios, str(found["ratio"]["goals"][f"ratio_{key}"])))
    times = table(("SmolLM2-135M, 4 x 512 tokens", "naive", "ours", "ratio", "ideal by counts", "goal"), rows)
    rounds = found["ratio"]["notes"]["rounds"]
    read, matrix, kl = (ratio[name] for name in ("reads_per_weight", "matrix_difference", "kl_difference"))
    differences = f"matrix {matrix:.1e} of its largest entry, KL {kl:.1e}"
    said = f"Rounds: {rounds}. Weights read: {read:.2f}x. Largest difference of the two ways: {differences}."
    rows = [
        ("seconds", f"{large['estimated_seconds']:.0f}", f"{large['seconds']:.0f}"),
        ("weights read, of the checkpoint", "1.00", f"{large['weights_read_ratio']:.2f}"),
        ("peak memory, GiB", f"{large['estimated_peak_gib']:.2f}", f"{large['peak_rss_gib']:.2f}"),
    ]
    budget = table(("random Llama of 12.1 GB, `--memory 4GiB`, 128 tokens", "estimated", "measured"), rows)
    return f"{times}\n\n{said}\n\n{budget}"
