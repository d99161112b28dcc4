"""``ffn-fusion report``: draw a run's report anew from what it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say


def report(
    workspace: Annotated[Path, typer.Argument(help="A run's folder, OUT.run, or its child OUT.", metavar="RUN")],
    as_json: JsonFlag = False,
) -> None:
    """Write report.html and the model card again from a finished run."""
    from ffn_fusion.pipeline.run import republish

    result = republish(workspace)
    if as_json:
        emit({"report": str(result.workspace.report), "checkpoint": str(result.workspace.output)})
        return
    say(f"report: {result.workspace.report}", err=False)
