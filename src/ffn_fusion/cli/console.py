"""What a person sees: tables and progress on a terminal, JSON on standard output when asked for.

Progress and words go to standard error, so that ``--json`` output can be piped.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.cli.time_left import TimeLeft
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.units import duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ffn_fusion.analysis.passes import PassEstimate
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.distillation.estimate import DistillEstimate
    from ffn_fusion.evaluation.task_estimate import TasksEstimate
    from ffn_fusion.puzzle.estimate import LibraryEstimate
    from ffn_fusion.repair.estimate import RepairEstimate

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def say(*lines: Any, err: bool = True) -> None:
    """Print lines, tables and whatever else rich can print, for people."""
    from rich.console import Console

    from ffn_fusion.report.grid import Grid
    from ffn_fusion.report.terminal import rich_table

    console = Console(stderr=err)
    for line in lines:
        shown = rich_table(line) if isinstance(line, Grid) else line
        console.print(shown, soft_wrap=isinstance(line, str), markup=False, highlight=False)


def emit(value: Any) -> None:
    """Print JSON."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


class Bars:
    """Progress with time left, a bar for each piece of work; without a terminal, a line every ten seconds."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._tasks: dict[str, TaskID] = {}
        self._left: dict[str, TimeLeft] = defaultdict(TimeLeft)
        self._spoke = clock()
        self._live = progress.console.is_terminal

    def __call__(self, what: str, done: int, total: int) -> None:
        estimate = self._left[what]
        estimate.report(self._clock(), done, total)
        left = "" if estimate.seconds is None or done >= total else f"about {duration(estimate.seconds)} left"
        if not self._live:
            self._speak(what, done, total, left)
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, left="")
        self._progress.update(self._tasks[what], completed=done, total=total, left=left)

    def _speak(self, what: str, done: int, total: int, left: str) -> None:
        now = self._clock()
        if now - self._spoke < 10 or not done:
            return
        self._spoke = now
        said = f"  {what}: {100 * done // max(total, 1)} %"
        self._progress.console.print(", ".join(filter(None, (said, left))), highlight=False)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars for the verbs; finished ones stay visible."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress)


class TerminalListener(Listener):
    """Prints a job's stages, estimates and progress."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def opened(self, checkpoint: Checkpoint) -> None:
        for note in checkpoint.notes:
            say(f"{checkpoint.name}: {note}")

    def stage(self, name: str, number: int, total: int) -> None:
        if total > 1:
            say(f"[{number}/{total}] {name}")

    def skipped(self, name: str) -> None:
        say(f"{name}: done already")

    def progress(self, what: str, done: int, total: int) -> None:
        self._bars(what, done, total)

    def measuring(self, plan: PassEstimate) -> None:
        from ffn_fusion.report.estimate_grids import passes_grid

        say(passes_grid([plan]))

    def stocking(self, making: LibraryEstimate, scoring: PassEstimate) -> None:
        from ffn_fusion.report.library_grids import library_estimate_grid

        say(library_estimate_grid(making, scoring))

    def repairing(self, plan: RepairEstimate) -> None:
        from ffn_fusion.report.estimate_grids import repair_estimate_grid

        say(repair_estimate_grid(plan))

    def distilling(self, plans: Sequence[DistillEstimate], child_bytes: int) -> None:
        from ffn_fusion.report.estimate_grids import distill_estimate_grid

        say(distill_estimate_grid(plans, child_bytes))

    def asking(self, plan: TasksEstimate) -> None:
        from ffn_fusion.report.task_grids import tasks_estimate_grid

        say(tasks_estimate_grid(plan))

    def planned(self, checkpoint: Checkpoint, plan: Plan, remaining: Mapping[str, float]) -> None:
        show_plan(checkpoint, plan)
        if remaining:
            each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in remaining.items())
            say(f"estimated time left, by this machine's pace: {duration(sum(remaining.values()))} ({each})")


def show_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """The plan before anything is built: block diagram, table, sizes and what's expected of it."""
    import shutil

    from ffn_fusion.report.diagram import block_diagram
    from ffn_fusion.report.model_grids import plan_grid

    say(block_diagram(plan.blueprint, width=min(shutil.get_terminal_size().columns, 120)))
    say(plan_grid(plan.blueprint), *plan_lines(checkpoint, plan))


def plan_lines(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """What a plan costs and promises, line by line."""
    from ffn_fusion.analysis.cost_count import steps
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.report.model_grids import engines_line
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
