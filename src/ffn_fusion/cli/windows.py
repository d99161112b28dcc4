"""``ffn-fusion windows``: which whole blocks depend least on one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say


def windows(
    evidence: Annotated[Path, typer.Argument(help="Folder that `analyze` wrote.", metavar="EVIDENCE")],
    size: Annotated[int, typer.Option(help="Blocks in a window.", min=2)] = 4,
    count: Annotated[
        int | None, typer.Option(help="How many windows at most; all of them if not given.", min=1)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rank windows of whole blocks by how little they depend on one another, as the paper does to parallelise them."""
    from ffn_fusion.analysis.evidence import Evidence
    from ffn_fusion.analysis.parallel_windows import windows_of
    from ffn_fusion.report.evidence_grids import windows_grid

    measured = Evidence.load(evidence)
    found = windows_of(measured, size, count)
    if as_json:
        emit([vars(window) for window in found])
        return
    if not found:
        say(f"no {size} blocks side by side have both an attention and an FFN", err=False)
        return
    say(windows_grid(found), err=False)
