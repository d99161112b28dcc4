"""Which runs are worth measuring, and what is measured about them: edits of a sweep, plain and repaired.

A run drops the attentions of consecutive blocks and fuses their FFNs; by default its last FFN stays alone, as in the
paper. Its first block may keep its attention: then that block's FFN joins the sum as well.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from ffn_fusion.analysis.evidence import Removal
from ffn_fusion.analysis.observe import removed
from ffn_fusion.blockwise.edits import Edit, FusedRun, SideBySide
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.families import ModelSpec, family_of
from ffn_fusion.families.block_lists import differing_list
from ffn_fusion.repair.beside import RepairedSideBySide
from ffn_fusion.repair.candidate import RepairedRun, Workbench


def least_important(removals: Sequence[Removal], share: float) -> set[int]:
    """Blocks of that share of the attentions, by replace-1 damage, repaired where that was measured."""
    importance = [row for row in removals if row.part == "attention"]
    cheapest = sorted(importance, key=lambda row: row.judged().kl)
    return {row.block for row in cheapest[: round(share * len(cheapest))]}


def candidate_runs(spec: ModelSpec, allowed: Iterable[int], max_run: int, leave_last: bool = True) -> list[FusedRun]:
    """Runs of up to ``max_run`` blocks whose dropped attentions are all among the ``allowed``.

    Blocks that have no attention in the parent (Nemotron-NAS) cost nothing to drop and always qualify; blocks without
    a gated FFN end a run.

    Args:
        leave_last: only runs whose last FFN stays alone; otherwise those that fuse it, too.
    """
    if family_of(spec).can("fuse") or family_of(spec).can("drop attention"):
        return []
    allowed = set(allowed) | {i for i, block in enumerate(spec.blocks) if block.attention is None}
    found = []
    for first in range(len(spec.blocks)):
        for last in range(first + 1, min(first + max_run, len(spec.blocks))):
            inside = spec.blocks[first : last + 1]
            if any(block.ffn is None or block.ffn.kind == "linear" for block in inside):
                break
            if not set(range(first + 1, last + 1)) <= allowed:
                break
            for fused_last in (last - 1,) if leave_last else (last - 1, last):
                if fused_last == first:
                    continue  # nothing fused: the attentions dropped one by one say as much
                if first in allowed:
                    found.append(FusedRun(first, last, fused_last, keeps_attention=False))
                if spec.blocks[first].attention is not None:
                    found.append(FusedRun(first, last, fused_last, keeps_attention=True))
    return found


def blocks_side_by_side(spec: ModelSpec, most: int) -> list[tuple[int, int]]:
    """Runs of 2 to ``most`` whole blocks that can be one block, first and last."""
    if family_of(spec).can("side by side"):
        return []
    whole = [
        block.attention is not None
        and block.attention.kind != "linear"
        and (block.ffn is None or block.ffn.kind != "linear")
        for block in spec.blocks
    ]
    return [
        (first, last)
        for first in range(len(whole))
        for last in range(first + 1, min(first + most, len(whole)))
        if all(whole[first : last + 1]) and differing_list(spec.config, range(first, last + 1)) is None
    ]


def side_by_side_edits(
    stack: Stack, runs: Iterable[tuple[int, int]], bench: Workbench | None = None
) -> dict[str, Edit]:
    """Blocks of each run side by side; with a ``bench``, repaired as well."""
    edits: dict[str, Edit] = {}
    for first, last in runs:
        name = side_by_side_name(first, last)
        edits[name] = SideBySide(first, last, stack)
        if bench:
            edits[repaired_name(name)] = RepairedSideBySide(first, last, stack, bench=bench)
    return edits


def side_by_side_name(first: int, last: int) -> str:
    return f"side by side {first}-{last}"


def run_edits(runs: Sequence[FusedRun], bench: Workbench | None = None) -> dict[str, Edit]:
    """Every run; with a ``bench``, every run repaired as well."""
    edits: dict[str, Edit] = {run_name(run): run for run in runs}
    if bench is None:
        return edits
    longest: dict[tuple[int, bool], FusedRun] = {}
    for run in sorted(runs, key=lambda run: run.fused_last):
        longest[run.first, run.keeps_attention] = run
    for run in runs:
        lender = longest[run.first, run.keeps_attention]
        edits[repaired_name(run_name(run))] = RepairedRun(
            run.first,
            run.last,
            run.fused_last,
            run.keeps_attention,
            bench,
            lender=None if run is lender else repaired_name(run_name(lender)),
        )
    return edits


def repaired_removals(spec: ModelSpec, bench: Workbench, among: Container[int] | None = None) -> dict[str, Edit]:
    """Return edits that drop one attention each (``among`` these blocks; None: all) and repair its block's FFN."""
    return {
        repaired_name(removed("attention", i)): RepairedRun(i, i, i, False, bench)
        for i, block in enumerate(spec.blocks)
        if block.attention and block.ffn and block.ffn.kind != "linear" and (among is None or i in among)
    }


def run_name(run: FusedRun) -> str:
    return f"run {run.first}-{run.last} to {run.fused_last}{' kept' if run.keeps_attention else ''}"


def repaired_name(name: str) -> str:
    return f"repaired {name}"
