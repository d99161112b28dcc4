"""``ffn-fusion build`` and ``fuse``: write the child, from a blueprint or from explicit runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, plan_lines, progress_bars, say, show_plan
from ffn_fusion.cli.options import DropBlocks, DryRun, MaxWidth, Model, Norm, Output, Revision, Runs

if TYPE_CHECKING:
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.checkpoint.reader import Checkpoint

WidthMultiple = Annotated[
    int,
    typer.Option(help="Pad FFN widths to a multiple of this; 1 keeps them (not every engine loads that).", min=1),
]
ShardSize = Annotated[int, typer.Option("--max-shard-bytes", help="Largest file of weights.", min=1 << 20)]


def build(
    model: Model,
    blueprint: Annotated[Path, typer.Option(help="Blueprint that `plan` wrote.")],
    output: Output,
    width_multiple: WidthMultiple = 256,
    max_shard_bytes: ShardSize = 5_000_000_000,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the child that a blueprint describes."""
    from ffn_fusion.analysis.cost_count import counted_speedup
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.analysis.runs import Selection
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.surgery.build import check_blueprint

    decided = Blueprint.load(blueprint)
    checkpoint = open_model(model, revision=revision)
    check_blueprint(checkpoint, decided)
    plan = Plan(decided, Selection(()), counted_speedup(checkpoint.spec, decided))
    _build(checkpoint, plan, output, width_multiple, max_shard_bytes, dry_run, as_json)


def fuse(
    model: Model,
    output: Output,
    drop_attention: DropBlocks = "",
    runs: Runs = "",
    max_width: MaxWidth = None,
    norm: Norm = "own",
    width_multiple: WidthMultiple = 256,
    max_shard_bytes: ShardSize = 5_000_000_000,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Plan and build with explicit runs: drop these attentions, fuse these runs."""
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.errors import UsageError
    from ffn_fusion.pipeline.recipe import section_from_options
    from ffn_fusion.pipeline.stages import make_plan

    if not drop_attention and not runs:
        raise UsageError("nothing to do: neither --drop-attention nor --runs", "say what to change, like --runs 5-9")
    section = section_from_options(drop=drop_attention, runs=runs, max_width=max_width, norm=norm)
    checkpoint = open_model(model, revision=revision)
    plan = make_plan(checkpoint, None, section)
    _build(checkpoint, plan, output, width_multiple, max_shard_bytes, dry_run, as_json)


def _build(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    width_multiple: int,
    max_shard_bytes: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    from ffn_fusion.checkpoint.staging import check_target
    from ffn_fusion.pipeline.recipe import BuildSection
    from ffn_fusion.pipeline.stages import build_child
    from ffn_fusion.surgery.child import Child

    check_target(output, checkpoint.folder)
    if not as_json:
        show_plan(checkpoint, plan)
    if not dry_run:
        section = BuildSection(width_multiple=width_multiple, max_shard_bytes=max_shard_bytes)
        with progress_bars() as bars:
            build_child(Child(checkpoint, plan.blueprint, width_multiple), section, output, bars)
    if as_json:
        about = {"blueprint": plan.blueprint.model_dump(mode="json"), "about": plan_lines(checkpoint, plan)}
        emit({"output": None if dry_run else str(output), **about})
    elif not dry_run:
        say(f"child: {output}", err=False)
