"""What work will take before it begins, as one process carries it out: a table for people, an object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ffn_fusion.report.formats import tera
from ffn_fusion.report.grid import Column, Grid, words
from ffn_fusion.units import duration, gb, gib

if TYPE_CHECKING:
    from ffn_fusion.analysis.passes import PassEstimate
    from ffn_fusion.blockwise.schedule import Schedule
    from ffn_fusion.distillation.estimate import DistillEstimate
    from ffn_fusion.repair.estimate import RepairEstimate

TOKENS = Column("tokens")
_TFLOPS = Column("TFLOPs", tera)
_READ = Column("weights read", gb)
DISK = Column("disk for states", gb)
MEMORY = Column("peak memory", gib)
TIME = Column("estimated time", duration)


def each_of(processes: int) -> str:
    return f"For each of {processes} processes." if processes > 1 else ""


# ---- analysis


def passes_grid(plans: Sequence[PassEstimate]) -> Grid:
    """What each pass over the weights takes; a column for each."""
    return Grid.of(
        plans,
        (words("to measure"), lambda plan: plan.name),
        (Column("variants"), lambda plan: plan.variants),
        (TOKENS, lambda plan: plan.windows * plan.work.context),
        (Column("block evaluations"), lambda plan: plan.windows * plan.work.block_evaluations),
        (
            Column("TFLOPs, blocks + heads", str),
            lambda plan: f"{tera(plan.block_flops)} + {tera(plan.windows * plan.work.head_flops)}",
        ),
        (Column("weights", str), lambda plan: "stay in memory" if plan.schedule.resident else "streamed"),
        (_READ, lambda plan: plan.schedule.weight_bytes),
        (Column("chunks of windows"), lambda plan: plan.schedule.chunks),
        (Column("states written and read", str), lambda plan: _states(plan.schedule)),
        (DISK, lambda plan: plan.schedule.disk_bytes),
        (MEMORY, lambda plan: plan.schedule.peak_memory),
        (TIME, lambda plan: plan.seconds),
        notes=[each_of(plans[0].processes), plans[0].schedule.alternative],
    ).transposed()


def _states(schedule: Schedule) -> str:
    if not schedule.in_files:
        return "none: in memory"
    return gb(schedule.moved_bytes) + (" in cache" if schedule.in_cache else " on disk")


def passes_json(plans: Sequence[PassEstimate]) -> dict[str, Any]:
    """Totals over the passes, and each pass."""
    rows = [
        {
            "name": plan.name,
            "variants": plan.variants,
            "tokens": plan.windows * plan.work.context,
            "block_evaluations": plan.work.block_evaluations,
            "block_flops": plan.block_flops,
            "head_flops": plan.windows * plan.work.head_flops,
            "seconds": plan.seconds,
            **vars(plan.schedule),
            "spilled_bytes": plan.schedule.spilled_bytes,
        }
        for plan in plans
    ]
    return {
        "seconds": sum(plan.seconds or 0.0 for plan in plans),
        "weight_bytes_read": sum(plan.schedule.weight_bytes for plan in plans),
        "spilled_bytes": sum(plan.schedule.spilled_bytes for plan in plans),
        "disk_bytes": max(plan.schedule.disk_bytes for plan in plans),
        "peak_memory_bytes": max(plan.schedule.peak_memory for plan in plans),
        "processes": plans[0].processes,
        "chunks": max(plan.schedule.chunks for plan in plans),
        "moved_bytes": sum(plan.schedule.moved_bytes for plan in plans),
        "passes": len(plans),
        "each": rows,
    }


# ---- repair


def repair_estimate_grid(plan: RepairEstimate) -> Grid:
    """What a repair takes."""
    return Grid.of(
        [plan],
        (words("to repair"), lambda plan: ""),
        (Column("places"), lambda plan: len(plan.places)),
        (Column("widest"), lambda plan: max(found.width for found in plan.places)),
        (Column("solved by the dual"), lambda plan: sum(found.dual for found in plan.places)),
        (TOKENS, lambda plan: plan.tokens),
        (_TFLOPS, lambda plan: plan.flops),
        (_READ, lambda plan: plan.weight_bytes),
        (DISK, lambda plan: plan.disk_bytes),
        (MEMORY, lambda plan: plan.peak_memory),
        (TIME, lambda plan: plan.seconds),
        notes=[each_of(plan.processes)],
    ).transposed()


def repair_json(plan: RepairEstimate) -> dict[str, Any]:
    """What a repair takes, for programs."""
    places = [{**vars(found.place), "width": found.width, "dual": found.dual} for found in plan.places]
    return {**{name: value for name, value in vars(plan).items() if name != "places"}, "places": places}


# ---- distillation


def distill_estimate_grid(plans: Sequence[DistillEstimate], child_bytes: int = 0) -> Grid:
    """What each stage of a distillation takes; a column for each.

    Args:
        child_bytes: size of the child before the distillation, where that one stays on disk.
    """
    several = len(plans) > 1
    return Grid.of(
        enumerate(plans, 1),
        (words("to distil"), lambda pair: f"stage {pair[0]}" if several else ""),
        (TOKENS, lambda pair: pair[1].tokens),
        (Column("steps"), lambda pair: pair[1].steps),
        (Column("windows per step"), lambda pair: pair[1].batch),
        (Column("context"), lambda pair: pair[1].context),
        (
            Column("parameters trained", str),
            lambda pair: f"{pair[1].parameters / 1e6:,.1f}M of {pair[1].of / 1e6:,.1f}M",
        ),
        (_TFLOPS, lambda pair: pair[1].flops),
        (Column("disk for checkpoints", gb), lambda pair: pair[1].disk_bytes),
        (Column("disk for the teacher cache", gb, optional=True), lambda pair: pair[1].cache_bytes or None),
        (Column("peak memory, about", gib), lambda pair: pair[1].peak_memory),
        (TIME, lambda pair: pair[1].seconds),
        notes=[
            each_of(plans[0].processes),
            f"{sum(plan.tokens for plan in plans):,} tokens in all{_in_all(plans)}." if several else "",
            "Checkpoints of one stage are kept at a time." if several else "",
            f"Disk for the child before and after: {gb(2 * child_bytes)}." if child_bytes else "",
        ],
    ).transposed()


def _in_all(plans: Sequence[DistillEstimate]) -> str:
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    return f", {duration(sum(known))}" if len(known) == len(plans) else ""


def distill_json(plans: Sequence[DistillEstimate]) -> dict[str, Any]:
    """What a distillation takes, for programs: each stage, where there are several."""
    return vars(plans[0]) if len(plans) == 1 else {"stages": [vars(plan) for plan in plans]}
