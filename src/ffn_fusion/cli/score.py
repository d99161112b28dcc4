"""``ffn-fusion score``: what each of a child's changes does alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import with_device
from ffn_fusion.evaluation.settings import ScoredTextSettings
from ffn_fusion.settings import ComputeSettings


class _Texts(ScoredTextSettings):
    """Fewer tokens than an evaluation: every change is scored."""

    tokens: int = Field(2048, gt=0, description="Number of tokens of each text.")


@options
def score(
    child: Annotated[Path, typer.Argument(help="A child that ffn-fusion made, or a blueprint file.", metavar="CHILD")],
    parent: Annotated[str, typer.Option(help="The model it was made of.")],
    texts: _Texts,
    compute: ComputeSettings,
    opening: OpenSettings,
    as_json: JsonFlag = False,
) -> None:
    """Put each changed block of a child alone into its parent, and measure the damage."""
    from ffn_fusion.analysis.changes import score_changes
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
    from ffn_fusion.pipeline.texts import held_out_windows
    from ffn_fusion.report.quality_grids import changes_grid
    from ffn_fusion.sources import open_model
    from ffn_fusion.surgery.build import check_blueprint
    from ffn_fusion.surgery.child import Child

    blueprint = Blueprint.load(child if child.is_file() else child / "blueprint.json")
    model = open_model(parent, opening=opening)
    check_blueprint(model, blueprint)
    made: Checkpoint | Child = Child(model, blueprint) if child.is_file() else open_folder(child)
    windows = held_out_windows(model, texts, compute.seed)
    with progress_bars() as bars:
        scores = score_changes(
            model, made, blueprint, windows, device=with_device(compute).device, memory=compute.memory, progress=bars
        )
    if as_json:
        changes = [{**vars(change), "damage": change.damage.model_dump()} for change in scores.changes]
        emit({"changes": changes, "whole": scores.whole.model_dump(), "summed_kl": scores.summed_kl})
        return
    say(changes_grid(scores), err=False)
