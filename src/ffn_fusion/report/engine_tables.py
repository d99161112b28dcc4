"""What the engines make of a child, as text: a row for every engine and reason, and all of it in a line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.report.tables import Grid

if TYPE_CHECKING:
    from ffn_fusion.portability.rule import EngineCheck, Verdict


def engines_grid(found: Sequence[EngineCheck]) -> Grid:
    """A row for every engine and reason; blocks that share one stand together."""
    rows = [
        ("" if n else check.engine, "" if n else check.verdict, blocks, why)
        for check in found
        for n, (blocks, why) in enumerate(reasons(check) or [("", "")])
    ]
    return Grid(("engine", "verdict", "blocks", "why"), tuple(rows), words=4)


def reasons(check: EngineCheck) -> list[tuple[str, str]]:
    """(blocks, why) of an engine's problems, one for every rule that's broken."""
    found = []
    for _, same in groupby(check.problems, key=lambda problem: problem.rule):
        problems = list(same)
        blocks = [problem.block for problem in problems if problem.block is not None]
        fixable = "" if problems[0].fixable else " (can't be rewritten)"
        found.append((format_blocks(blocks) if blocks else "", problems[0].reason + fixable))
    return found


def engines_line(found: Sequence[EngineCheck]) -> str:
    """Verdict by verdict, the engines that share it."""
    shared: dict[Verdict, list[str]] = {}
    for row in found:
        shared.setdefault(row.verdict, []).append(row.engine)
    words: dict[Verdict, str] = {"loads": "loads in", "loads after --fix": "after check --fix in", "cannot": "not in"}
    return "; ".join(f"{words[verdict]} {', '.join(shared[verdict])}" for verdict in words if verdict in shared)
