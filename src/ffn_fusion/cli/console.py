"""What a person sees: tables and progress on a terminal, JSON on standard output when asked for.

Progress and words go to standard error, so that ``--json`` output can be piped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ffn_fusion.analysis.passes import PassEstimate
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.distillation.plan import DistillPlan
    from ffn_fusion.repair.plan import RepairPlan

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def say(*lines: Any, err: bool = True) -> None:
    """Print for people."""
    from rich.console import Console

    console = Console(stderr=err)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str), markup=False, highlight=False)


def emit(value: Any) -> None:
    """Print JSON."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


class Bars:
    """Progress bars with time left, one per piece of work; plain lines now and then where there's no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._spoke = time.monotonic()
        self._live = progress.console.is_terminal

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._live:
            self._speak(what, done, total)
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)

    def _speak(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self._started.setdefault(what, now)
        if now - self._spoke < 10 or not done:
            return
        self._spoke = now
        left = (now - began) * (total - done) / done
        self._progress.console.print(
            f"  {what}: {100 * done // max(total, 1)} %, about {left:.0f} s left", highlight=False
        )


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars for the verbs; finished ones stay visible."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress)


class TerminalListener:
    """Tells a run's stages; see ``pipeline.job.Listener``."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def stage(self, name: str, number: int, total: int) -> None:
        if total > 1:
            say(f"[{number}/{total}] {name}")

    def skipped(self, name: str) -> None:
        say(f"{name}: done already")

    def progress(self, what: str, done: int, total: int) -> None:
        self._bars(what, done, total)

    def measuring(self, plan: PassEstimate) -> None:
        from ffn_fusion.cli.passes import passes_table

        say(passes_table([plan]))

    def repairing(self, plan: RepairPlan) -> None:
        from ffn_fusion.cli.passes import repair_plan_table

        say(repair_plan_table(plan))

    def distilling(self, plans: Sequence[DistillPlan], child_bytes: int) -> None:
        from ffn_fusion.cli.passes import distill_plan_table

        say(distill_plan_table(plans, child_bytes))

    def planned(self, checkpoint: Checkpoint, plan: Plan, remaining: Mapping[str, float]) -> None:
        show_plan(checkpoint, plan)
        if remaining:
            each = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in remaining.items())
            say(f"time to come, estimated from this machine's pace: {_minutes(sum(remaining.values()))} ({each})")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def show_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """The plan before anything is built: block diagram, table, sizes and what's expected of it."""
    import shutil

    from ffn_fusion.report.terminal import block_diagram, plan_table

    say(block_diagram(plan.blueprint, width=min(shutil.get_terminal_size().columns, 120)))
    say(plan_table(plan.blueprint))
    for line in plan_lines(checkpoint, plan):
        say(line)


def plan_lines(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """What a plan costs and promises, a line each."""
    from ffn_fusion.analysis.cost_count import steps
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.report.engine_tables import engines_line
    from ffn_fusion.surgery.build import child_bytes
    from ffn_fusion.surgery.child import Child

    child = child_bytes(Child(checkpoint, plan.blueprint))
    before = steps(Blueprint.identity(plan.blueprint.parent))
    lines = [
        f"weights {checkpoint.nbytes / 1e9:.2f} GB -> {child / 1e9:.2f} GB (disk needed for the child), "
        f"sequential steps {before} -> {steps(plan.blueprint)}",
        f"decode speed-up by the simple cost count: {plan.counted_speedup:.2f}",
    ]
    if plan.engines:
        lines.append(engines_line(plan.engines))
    if plan.selection.choices:
        lines.append(f"summed measured damage: {plan.selection.score:.3f} nats a token (KL to the parent)")
    return lines
