"""What an analysis will take, before it begins: a table for people, an object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ffn_fusion.units import duration, gb, gib

if TYPE_CHECKING:
    from rich.table import Table

    from ffn_fusion.analysis.passes import PassEstimate
    from ffn_fusion.blockwise.schedule import Schedule
    from ffn_fusion.distillation.plan import DistillPlan
    from ffn_fusion.repair.plan import RepairPlan


def passes_table(plans: Sequence[PassEstimate]) -> Table:
    """One column a pass over the weights, as one process carries it out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("to measure")
    for plan in plans:
        table.add_column(plan.name, justify="right")
    for label, *cells in zip(_LABELS, *(_cells(plan) for plan in plans), strict=True):
        table.add_row(label, *cells)
    notes = [f"each of {plans[0].processes} processes"] if plans[0].processes > 1 else []
    table.caption = "; ".join([*notes, plans[0].schedule.alternative])
    return table


_LABELS = (
    "variants",
    "tokens",
    "block evaluations",
    "TFLOPs in blocks + heads",
    "weights",
    "weights read",
    "chunks of windows",
    "states written and read",
    "disk for states",
    "peak memory",
    "estimated time",
)


def _cells(plan: PassEstimate) -> tuple[str, ...]:
    schedule, work = plan.schedule, plan.work
    flops = plan.block_flops / 1e12, plan.windows * work.head_flops / 1e12
    return (
        f"{plan.variants}",
        f"{plan.windows * work.context:,}",
        f"{plan.windows * work.block_evaluations:,.0f}",
        f"{flops[0]:,.1f} + {flops[1]:,.1f}",
        "stay in memory" if schedule.resident else "streamed",
        gb(schedule.weight_bytes),
        f"{schedule.chunks}",
        _states(schedule),
        gb(schedule.disk_bytes),
        gib(schedule.peak_memory),
        duration(plan.seconds) if plan.seconds is not None else "?",
    )


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


def show_repair_plan(plan: RepairPlan) -> None:
    """What a repair takes, for people."""
    from ffn_fusion.cli.console import say

    say(repair_plan_table(plan))


def repair_plan_table(plan: RepairPlan) -> Table:
    """What a repair takes, as one process carries it out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    dual = sum(found.dual for found in plan.places)
    widest = max(found.width for found in plan.places)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("to repair")
    table.add_column("", justify="right")
    for label, cell in (
        ("places", f"{len(plan.places)}"),
        ("widest", f"{widest:,}"),
        ("solved by the dual", f"{dual}"),
        ("tokens", f"{plan.tokens:,}"),
        ("TFLOPs", f"{plan.flops / 1e12:,.1f}"),
        ("weights read", gb(plan.weight_bytes)),
        ("disk for states", gb(plan.disk_bytes)),
        ("peak memory", gib(plan.peak_memory)),
        ("estimated time", duration(plan.seconds) if plan.seconds is not None else "?"),
    ):
        table.add_row(label, cell)
    if plan.processes > 1:
        table.caption = f"each of {plan.processes} processes"
    return table


def repair_json(plan: RepairPlan) -> dict[str, Any]:
    """The same for programs."""
    places = [{**vars(found.place), "width": found.width, "dual": found.dual} for found in plan.places]
    return {**{name: value for name, value in vars(plan).items() if name != "places"}, "places": places}


def show_distill_plan(plans: Sequence[DistillPlan]) -> None:
    """What a distillation takes, for people."""
    from ffn_fusion.cli.console import say

    say(distill_plan_table(plans))


_DISTILL_LABELS = (
    "tokens",
    "steps",
    "windows a step",
    "context",
    "parameters trained",
    "TFLOPs",
    "disk for checkpoints",
    "disk for the teacher cache",
    "peak memory, about",
    "estimated time",
)


def distill_plan_table(plans: Sequence[DistillPlan], child_bytes: int = 0) -> Table:
    """One column a stage, as one process carries it out; ``child_bytes``: of the child before, where that one stays."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("to distil")
    for number in range(len(plans)):
        table.add_column(f"stage {number + 1}" if len(plans) > 1 else "", justify="right")
    for label, *cells in zip(_DISTILL_LABELS, *(_distill_cells(plan) for plan in plans), strict=True):
        if any(cells):
            table.add_row(label, *cells)
    notes = [f"each of {plans[0].processes} processes"] if plans[0].processes > 1 else []
    if len(plans) > 1:
        notes.append(f"in all {sum(plan.tokens for plan in plans):,} tokens{_in_all(plans)}")
        notes.append("checkpoints of one stage at a time")
    if child_bytes:
        notes.append(f"disk for the child before and after: {gb(2 * child_bytes)}")
    table.caption = "; ".join(notes)
    return table


def _distill_cells(plan: DistillPlan) -> tuple[str, ...]:
    return (
        f"{plan.tokens:,}",
        f"{plan.steps:,}",
        f"{plan.batch:,}",
        f"{plan.context:,}",
        f"{plan.parameters / 1e6:,.1f}M of {plan.of / 1e6:,.1f}M",
        f"{plan.flops / 1e12:,.1f}",
        gb(plan.disk_bytes),
        gb(plan.cache_bytes) if plan.cache_bytes else "",
        gib(plan.peak_memory),
        duration(plan.seconds) if plan.seconds is not None else "?",
    )


def _in_all(plans: Sequence[DistillPlan]) -> str:
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    return f", {duration(sum(known))}" if len(known) == len(plans) else ""


def distill_json(plans: Sequence[DistillPlan]) -> dict[str, Any]:
    """The same for programs: of several stages, each."""
    return vars(plans[0]) if len(plans) == 1 else {"stages": [vars(plan) for plan in plans]}
