"""``ffn-fusion library``: cheaper sub-blocks to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.from_settings import Named, Only, Without, options
from ffn_fusion.cli.options import DryRun, Model, Revision, with_device
from ffn_fusion.engines.settings import BenchSettings
from ffn_fusion.puzzle.settings import LibrarySettings
from ffn_fusion.settings import ComputeSettings


@options
def library(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the library.")],
    settings: Annotated[LibrarySettings, Without("enabled")],
    bench: Annotated[
        BenchSettings, Only("batches", "contexts"), Named(batches="--bench-batch", contexts="--bench-context")
    ],
    compute: ComputeSettings,
    opening: OpenSettings,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a library of cheaper sub-blocks: solved or trained one by one, scored alone in the parent, and costed."""
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.puzzle.store import SCORES, Library
    from ffn_fusion.report.library_grids import library_estimate_grid, library_grid, library_json
    from ffn_fusion.search.table import read_scores

    section = settings.model_copy(update={"enabled": True})
    sections = {"library": section, "bench": bench}
    recipe = Recipe(
        model=model, revision=revision, output=output, **dict(with_device(compute)), **dict(opening), **sections
    )
    with progress_bars() as bars:
        space = Workspace.hidden(output, library=output)
        job = begin(recipe, ("library",), space=space, listener=TerminalListener(bars))
        job.carry_out(dry_run=dry_run)
    if dry_run:
        plan = job.estimates["library"]
        if as_json:
            emit(library_json(plan.making, plan.scoring))
        else:
            say(library_estimate_grid(plan.making, plan.scoring), "dry run: nothing was made", err=False)
        return
    found = Library.open(output)
    if as_json:
        emit({"library": str(output), "entries": [entry.model_dump(mode="json") for entry in found.entries]})
        return
    say(library_grid(found.entries, read_scores(output / SCORES["kl"])), f"library: {output}", err=False)
