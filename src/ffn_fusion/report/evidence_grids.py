"""Evidence: sub-blocks removed one at a time, runs, the order of a run's FFNs, and windows of whole blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.report.formats import kl, printable
from ffn_fusion.report.grid import Column, Grid, kl_column, words
from ffn_fusion.report.quality_grids import AGREEMENT, HIDDEN_DISTANCE, LOSS, damage_kl

if TYPE_CHECKING:  # numpy stays out of a plain table on a terminal
    from ffn_fusion.analysis.evidence import Evidence, MeasuredRun, Part
    from ffn_fusion.analysis.parallel import ParallelBlocks

ONE_OF: dict[Part, str] = {"attention": "one attention", "ffn": "one FFN", "block": "one whole block"}
"""What is gone when a part is removed, in the order in which parts are shown."""

_REPAIRED = kl_column("KL repaired", optional=True)


def measured_parts(evidence: Evidence) -> tuple[Part, ...]:
    """The parts of which removals were measured: attentions first, since plans drop them."""
    return tuple(part for part in ONE_OF if any(row.part == part for row in evidence.removals))


def measured_on(evidence: Evidence) -> str:
    """The tokens that every figure of ``evidence`` was measured on, for captions."""
    calibration = evidence.calibration
    tokens = f"{calibration.tokens:,} tokens of {', '.join(calibration.texts)}"
    return printable(f"{tokens} in windows of {calibration.context:,}")


def dependency_measured_on(evidence: Evidence) -> str:
    """The tokens that dependency was measured on, for captions."""
    few = evidence.dependency_tokens
    return measured_on(evidence) + (f" (of sub-blocks that weren't scored, over {few:,} of them)" if few else "")


def _means(evidence: Evidence) -> str:
    return f"Means over {evidence.calibration.tokens:,} tokens, ± standard error over windows."


def importance_grid(evidence: Evidence, top: int | None = 10, part: Part = "attention") -> Grid:
    """The ``top`` sub-blocks of one part that matter least, each dropped alone; None for all of them.

    Where repaired damages were measured too, the sub-blocks are ranked by them.
    """
    ranked = sorted((row for row in evidence.removals if row.part == part), key=lambda row: row.judged().kl)
    gone = f"{ONE_OF[part].capitalize().replace('ffn', 'FFN')} dropped at a time"
    return Grid.of(
        enumerate(ranked[:top], start=1),
        (Column("rank"), lambda pair: pair[0]),
        (Column("block"), lambda pair: pair[1].block),
        (kl_column(), lambda pair: damage_kl(pair[1].damage)),
        (_REPAIRED, lambda pair: damage_kl(pair[1].repaired) if pair[1].repaired else None),
        (LOSS, lambda pair: pair[1].damage.loss_increase),
        (AGREEMENT, lambda pair: pair[1].damage.agreement),
        (HIDDEN_DISTANCE, lambda pair: pair[1].damage.hidden_distance),
        notes=[
            f"{gone}, against the parent (loss {evidence.parent_loss:.4f}). {_means(evidence)}",
            "Repaired: the block's FFN solved anew, judged on windows it wasn't solved on."
            if any(row.repaired for row in ranked)
            else "",
        ],
    )


def reverse_order_grid(evidence: Evidence) -> Grid:
    """Every run tested: its attentions dropped, and its FFNs computed in order, in reversed order, and fused."""
    return Grid.of(
        evidence.reverse_order,
        (words("run"), lambda test: format_runs([(test.first, test.last)])),
        (kl_column("KL in order"), lambda test: damage_kl(test.in_order)),
        (kl_column("KL reversed"), lambda test: damage_kl(test.reversed)),
        (kl_column("KL fused"), lambda test: damage_kl(test.fused)),
        notes=[
            "A run's attentions are dropped and its FFNs computed in order, in reversed order, or fused. "
            f"{_means(evidence)}"
        ],
    )


def chosen_runs(runs: Sequence[MeasuredRun], blueprint: Blueprint) -> tuple[MeasuredRun, ...]:
    """The measured runs that the blueprint carries out; of nested ones the longest."""
    dropped = set(blueprint.dropped_attentions)
    fused = {i for first, last in blueprint.runs for i in range(first, last + 1)}

    def carried_out(run: MeasuredRun) -> bool:
        inside = set(range(run.first, run.last + 1))
        meant = set(range(run.first, run.fused_last + 1)) if run.fused_last > run.first else set()
        return bool(run.dropped) and set(run.dropped) <= dropped and inside & fused == meant

    done = [run for run in runs if carried_out(run)]
    return tuple(s for s in done if not any(set(s.dropped) < set(other.dropped) for other in done))


def runs_grid(evidence: Evidence, blueprint: Blueprint, limit: int | None = None) -> Grid:
    """The measured runs, least damage per attention first (repaired, where that was measured).

    Args:
        limit: how many at most; those of the blueprint are marked and always shown.
    """
    chosen = chosen_runs(evidence.runs, blueprint)
    ranked = sorted(evidence.runs, key=_per_attention)
    return Grid.of(
        [s for place, s in enumerate(ranked) if limit is None or place < limit or s in chosen],
        (words("attentions dropped"), lambda s: format_blocks(s.dropped)),
        (words("FFNs fused"), lambda s: format_runs([(s.first, s.fused_last)]) if s.fused_last > s.first else None),
        (words("in the child"), lambda s: "yes" if s in chosen else ""),
        (Column("dropped"), lambda s: len(s.dropped)),
        (kl_column(), lambda s: damage_kl(s.damage)),
        (_REPAIRED, lambda s: damage_kl(s.repaired) if s.repaired else None),
        (kl_column("KL per attention"), _per_attention),
        (LOSS, lambda s: s.damage.loss_increase),
        (AGREEMENT, lambda s: s.damage.agreement),
        tone=lambda s: "marked" if s in chosen else "",
    )


def side_by_side_grid(evidence: Evidence, blueprint: Blueprint | None = None, limit: int | None = None) -> Grid:
    """The runs of blocks that were measured side by side, least damage first (repaired, where that was measured).

    Args:
        blueprint: marks those that a child has.
        limit: how many at most.
    """
    chosen = blueprint.merged if blueprint else ()
    ranked = sorted(evidence.side_by_side, key=lambda row: row.judged().kl)
    return Grid.of(
        ranked[:limit],
        (words("side by side"), lambda row: format_runs([(row.first, row.last)])),
        (words("in the child", optional=True), lambda row: "yes" if (row.first, row.last) in chosen else None),
        (kl_column(), lambda row: damage_kl(row.damage)),
        (_REPAIRED, lambda row: damage_kl(row.repaired) if row.repaired else None),
        (LOSS, lambda row: row.damage.loss_increase),
        (AGREEMENT, lambda row: row.damage.agreement),
        tone=lambda row: "marked" if (row.first, row.last) in chosen else "",
        notes=[f"Whole blocks as one: their attentions on one state, then their FFNs. {_means(evidence)}"],
    )


def _per_attention(run: MeasuredRun) -> float:
    return run.judged().kl / max(len(run.dropped), 1)


def parallel_grid(groups: Sequence[ParallelBlocks]) -> Grid:
    """Groups of whole blocks, the least dependent first."""
    return Grid.of(
        enumerate(groups, start=1),
        (Column("rank"), lambda pair: pair[0]),
        (Column("blocks", str), lambda pair: format_runs([(pair[1].first, pair[1].last)])),
        (Column("largest dependency", kl), lambda pair: pair[1].m_max),
        (Column("sum of dependencies", kl), lambda pair: pair[1].m_sum),
        notes=["Dependency: cosine distance between what a block adds with and without an earlier one."],
    )
