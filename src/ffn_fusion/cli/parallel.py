"""``ffn-fusion parallel``: which whole blocks depend least on one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say


def parallel(
    evidence: Annotated[Path, typer.Argument(help="Folder that `analyze` wrote.", metavar="EVIDENCE")],
    size: Annotated[int, typer.Option(help="Blocks in a group.", min=2)] = 4,
    count: Annotated[int | None, typer.Option(help="How many groups at most; all of them if not given.", min=1)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rank groups of whole blocks by how little they depend on one another, as the paper does to parallelise them."""
    from ffn_fusion.analysis.evidence import Evidence
    from ffn_fusion.analysis.parallel import parallel_blocks_of
    from ffn_fusion.report.evidence_grids import parallel_grid

    measured = Evidence.load(evidence)
    found = parallel_blocks_of(measured, size, count)
    if as_json:
        emit([vars(group) for group in found])
        return
    if not found:
        say(f"no {size} blocks side by side have both an attention and an FFN", err=False)
        return
    say(parallel_grid(found), err=False)
