"""What the tables of evidence say: replace-1, stretches and the reverse-order test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.report.tables import NOTHING, Grid, printable, small, small_pm

if TYPE_CHECKING:  # numpy stays out of a plain table on a terminal
    from ffn_fusion.analysis.evidence import Evidence, MeasuredRun, Part, Removal

ONE_OF: dict[Part, str] = {"attention": "one attention", "ffn": "one FFN", "block": "one whole block"}
"""What is gone when a part is removed, in the order in which parts are shown."""
_REPAIRED = "KL repaired"


def measured_parts(evidence: Evidence) -> tuple[Part, ...]:
    """The parts of which removals were measured: attentions first, they are what a plan drops."""
    return tuple(part for part in ONE_OF if any(row.part == part for row in evidence.removals))


def measured_on(evidence: Evidence) -> str:
    """The tokens behind every number of ``evidence``, for captions."""
    calibration = evidence.calibration
    tokens = f"{calibration.tokens:,} tokens of {', '.join(calibration.texts)}"
    return printable(f"{tokens} in windows of {calibration.context:,}")


def importance_grid(evidence: Evidence, top: int | None, part: Part = "attention") -> Grid:
    """The sub-blocks of one part that matter least first: what dropping each one alone does, and what it does repaired,
    where that was measured; then that is the order.
    """
    ranked = sorted((row for row in evidence.removals if row.part == part), key=lambda row: row.judged().kl)
    repaired = any(row.repaired for row in ranked)
    rows = tuple(
        (
            str(place),
            str(row.block),
            small_pm(row.damage.kl, row.damage.kl_error),
            *([_repaired(row)] if repaired else []),
            f"{row.damage.loss_increase:+.4f}",
            f"{100 * row.damage.agreement:.1f} %",
            small(row.damage.hidden_distance),
        )
        for place, row in enumerate(ranked[:top], start=1)
    )
    kl = ("KL from parent", _REPAIRED) if repaired else ("KL from parent",)
    return Grid(("rank", "block", *kl, "loss increase", "same next token", "hidden distance"), rows, words=0)


def _repaired(row: Removal | MeasuredRun) -> str:
    return small_pm(row.repaired.kl, row.repaired.kl_error) if row.repaired else NOTHING


def reverse_order_grid(evidence: Evidence) -> Grid:
    """Every run that was tested: its FFNs in order, in reversed order, and fused."""
    rows = tuple(
        (
            format_blocks(range(test.first, test.last + 1)),
            *(small_pm(damage.kl, damage.kl_error) for damage in (test.in_order, test.reversed, test.fused)),
        )
        for test in evidence.reverse_order
    )
    return Grid(("run", "KL in order", "KL reversed", "KL fused"), rows)


def chosen_stretches(stretches: Sequence[MeasuredRun], blueprint: Blueprint) -> tuple[MeasuredRun, ...]:
    """The measured stretches that the blueprint carries out; of nested ones the longest."""
    dropped = set(blueprint.dropped_attentions)
    fused = {i for first, last in blueprint.runs for i in range(first, last + 1)}

    def carried_out(stretch: MeasuredRun) -> bool:
        inside = set(range(stretch.first, stretch.last + 1))
        meant = set(range(stretch.first, stretch.fused_last + 1)) if stretch.fused_last > stretch.first else set()
        return bool(stretch.dropped) and set(stretch.dropped) <= dropped and inside & fused == meant

    done = [stretch for stretch in stretches if carried_out(stretch)]
    return tuple(s for s in done if not any(set(s.dropped) < set(other.dropped) for other in done))


def stretches_grid(evidence: Evidence, blueprint: Blueprint, limit: int | None = None) -> Grid:
    """The measured stretches, least damage per attention first; the blueprint's are marked, always shown.

    Where they were measured repaired, that is the order, and the KL per attention.
    """
    repaired = any(s.repaired for s in evidence.runs)
    chosen = chosen_stretches(evidence.runs, blueprint)
    ranked = sorted(evidence.runs, key=lambda s: s.judged().kl / max(len(s.dropped), 1))
    shown = [s for place, s in enumerate(ranked) if limit is None or place < limit or s in chosen]
    rows = tuple(
        (
            format_blocks(s.dropped),
            format_blocks(range(s.first, s.fused_last + 1)) if s.fused_last > s.first else NOTHING,
            "yes" if s in chosen else "",
            str(len(s.dropped)),
            small_pm(s.damage.kl, s.damage.kl_error),
            *([_repaired(s)] if repaired else []),
            small(s.judged().kl / max(len(s.dropped), 1)),
            f"{s.damage.loss_increase:+.4f}",
            f"{100 * s.damage.agreement:.1f} %",
        )
        for s in shown
    )
    columns = (
        "attentions dropped", "FFNs fused", "in the blueprint",
        "dropped", "KL from parent", *([_REPAIRED] if repaired else []), "KL per attention", "loss increase",
        "same next token",
    )  # fmt: skip
    return Grid(columns, rows, words=3, marked=frozenset(i for i, s in enumerate(shown) if s in chosen))
