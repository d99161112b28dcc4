"""Tables of the verbs that compare choices: rules, windows, and why a block is what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.report.distillation_tables import distillation_grid
from ffn_fusion.report.repair_tables import gains_grid, repairs_grid
from ffn_fusion.report.tables import NOTHING, Grid, small, small_pm
from ffn_fusion.report.terminal import table_of

if TYPE_CHECKING:  # numpy stays out of --help
    from ffn_fusion.analysis.changes import ChangeScores
    from ffn_fusion.analysis.evidence import Part
    from ffn_fusion.analysis.explanation import Alone, Dependency, Explanation, Link
    from ffn_fusion.analysis.parallel_windows import Window
    from ffn_fusion.analysis.rules import Compared

_NAMES: dict[Part, str] = {"block": "block", "attention": "attention", "ffn": "FFN"}


def compared_table(compared: Sequence[Compared]) -> Table:
    """The exact programme beside the rules."""
    rows = tuple(
        (
            row.name,
            format_blocks(row.dropped),
            format_runs(row.runs),
            small(row.damage) if row.damage is not None else NOTHING,
        )
        for row in compared
    )
    table = table_of(Grid(("chosen by", "attentions dropped", "FFNs fused", "summed damage"), rows, words=3))
    if any(row.damage is None for row in compared):
        table.caption = Text(f"{NOTHING}: not every run in it was measured")
    return table


def changes_table(scores: ChangeScores) -> Table:
    """Each change of a child alone in the parent, the worst first; then all of them."""
    ranked = sorted(scores.changes, key=lambda score: -score.damage.kl)
    rows = [(format_runs([(s.first, s.last)]), s.change, s.damage) for s in ranked]
    rows.append(("all", "the whole child", scores.whole))
    cells = tuple(
        (
            blocks,
            change,
            small_pm(damage.kl, damage.kl_error),
            f"{damage.loss_increase:+.4f}",
            f"{damage.agreement:.1%}",
            small(damage.hidden_distance),
        )
        for blocks, change, damage in rows
    )
    columns = ("blocks", "change, alone in the parent", "KL", "loss", "agreement", "hidden distance")
    table = table_of(Grid(columns, cells, words=2))
    table.caption = Text(f"single KLs add up to {small(scores.summed_kl)}; ± standard error over windows")
    return table


def repairs_table(record: Mapping[str, Any]) -> Table:
    """Every place that was solved."""
    table = table_of(repairs_grid(record))
    table.caption = Text(f"on {record['calibration']['tokens']:,} tokens; error: distance to the parent's state")
    return table


def gains_table(record: Mapping[str, Any]) -> Table | str:
    """KL to the parent on windows that took no part, text by text."""
    grid = gains_grid(record)
    if grid is None:
        return "too little text to keep some back: what the repair gained wasn't measured"
    table = table_of(grid)
    table.caption = Text("windows that took no part in the repair; pruned: the same attentions dropped, never fused")
    return table


def distillation_table(record: Mapping[str, Any]) -> Table | str:
    """KL to the parent and perplexity on windows that took no part, text by text."""
    grid = distillation_grid(record)
    if grid is None:
        return "too little text to keep some back: what the distillation gained wasn't measured"
    table = table_of(grid)
    trained = f"trained on {record['tokens']:,} tokens in {record['steps']} steps"
    table.caption = Text(f"windows that took no part; {trained}")
    return table


def windows_table(windows: Sequence[Window]) -> Table:
    """Windows of whole blocks, the least dependent first."""
    rows = tuple(
        (str(rank), format_runs([(window.first, window.last)]), small(window.m_max), small(window.m_sum))
        for rank, window in enumerate(windows, start=1)
    )
    return table_of(Grid(("rank", "blocks", "largest dependency", "sum of dependencies"), rows, words=0))


def neighbours_table(explanation: Explanation) -> Table:
    """The block among its neighbours: what became of each, and what dropping each alone does."""
    parts = [part for part in _NAMES if any(part in row.alone for row in explanation.neighbours)]
    parts.sort(key=lambda part: part != "attention")
    columns = ["block", "attention", "FFN"]
    for part in parts:
        columns += [f"KL without {_NAMES[part]}", "rank"]
    rows = tuple(
        (str(row.block), row.attention, row.ffn, *(cell for part in parts for cell in _alone(row.alone.get(part))))
        for row in explanation.neighbours
    )
    table = table_of(Grid(tuple(columns), rows, words=3))
    for drawn, neighbour in zip(table.rows, explanation.neighbours, strict=True):
        drawn.style = "bold" if neighbour.block == explanation.block else ""
    return table


def _alone(alone: Alone | None) -> tuple[str, str]:
    return (small_pm(alone.kl, alone.kl_error), str(alone.rank)) if alone else (NOTHING, NOTHING)


def geometry_table(explanation: Explanation) -> Table | None:
    """How blocks turn the state (arXiv 2503.18908, "why it works"); None if it wasn't measured."""
    found = [row for neighbour in explanation.neighbours for row in neighbour.geometry]
    whole = [row for row in found if row.part == "block"]
    rows = tuple(
        (str(row.block), _NAMES[row.part], small(row.turn), small(row.direction), small(row.size))
        for row in whole or found
    )
    if not rows:
        return None
    return table_of(Grid(("block", "part", "turn", "direction", "size"), rows, words=2))


def choices_table(explanation: Explanation) -> Table:
    """The measured changes that touch the block: what was chosen, then the cheapest that weren't."""
    rows = tuple(
        (
            format_blocks(choice.dropped),
            format_runs(choice.runs),
            "chosen" if choice.chosen else "" if choice.allowed else "above max-damage",
            small_pm(choice.damage, choice.damage_error),
            str(len(choice.dropped) + sum(last - first for first, last in choice.runs)),
            small(choice.per_step),
        )
        for choice in explanation.choices
    )
    columns = ("attentions dropped", "FFNs fused", "", "KL", "steps saved", "KL per step")
    return table_of(Grid(columns, rows, words=3))


def dependency_table(dependencies: Sequence[Dependency]) -> Table:
    """What the block depends on most, and what depends on it most."""
    rows = tuple((_NAMES[row.part], _links(row.depends_on), _links(row.needed_by)) for row in dependencies)
    return table_of(Grid(("", "depends most on", "needed most by"), rows, words=3))


def _links(links: Sequence[Link]) -> str:
    return ", ".join(f"{link.block} ({small(link.distance)})" for link in links) or NOTHING
