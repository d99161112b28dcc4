"""``ffn-fusion build`` and ``fuse``: write the child, from a blueprint or from explicit runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, plan_lines, progress_bars, say
from ffn_fusion.cli.from_settings import Only, options
from ffn_fusion.cli.options import (
    Context,
    Device,
    DryRun,
    Engines,
    Memory,
    Model,
    Output,
    Repair,
    RepairTexts,
    Revision,
    Seed,
    Tokens,
    WidthMultiple,
)
from ffn_fusion.repair.settings import DEFAULT_TOKENS

if TYPE_CHECKING:
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.pipeline.recipe import Recipe

UNREPAIRED_LINE = "the child is unrepaired: give --text, and what surgery cost is repaired in closed form"
ShardSize = Annotated[int, typer.Option("--max-shard-bytes", help="Largest file of weights.", min=1 << 20)]


def build(
    model: Model,
    blueprint: Annotated[Path, typer.Option(help="Blueprint that `plan` wrote.")],
    output: Output,
    for_engine: Engines = None,
    width_multiple: WidthMultiple = 256,
    max_shard_bytes: ShardSize = 5_000_000_000,
    text: RepairTexts = None,
    tokens: Tokens = DEFAULT_TOKENS,
    context: Context = 512,
    repair: Repair = True,
    seed: Seed = 0,
    device: Device = "cpu",
    memory: Memory = None,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the child that a blueprint describes."""
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.pipeline.recipe import BuildSection, RepairSection, recipe_from_options
    from ffn_fusion.portability.rule import parse_engines

    decided = Blueprint.load(blueprint)
    recipe = recipe_from_options(
        model=model,
        revision=revision,
        output=output,
        seed=seed,
        device=device,
        memory=memory,
        plan=PlanSettings(for_engines=parse_engines(for_engine or ())),
        repair=RepairSection(enabled=bool(text) and repair, texts=tuple(text or ()), tokens=tokens, context=context),
        build=BuildSection(width_multiple=width_multiple, max_shard_bytes=max_shard_bytes),
    )
    _build(recipe, decided, dry_run, as_json)


@options
def fuse(
    model: Model,
    output: Output,
    settings: Annotated[
        PlanSettings, Only("without_attention", "runs", "max_width", "width_curve", "norm", "for_engines")
    ],
    width_multiple: WidthMultiple = 256,
    max_shard_bytes: ShardSize = 5_000_000_000,
    text: RepairTexts = None,
    tokens: Tokens = DEFAULT_TOKENS,
    context: Context = 512,
    repair: Repair = True,
    seed: Seed = 0,
    device: Device = "cpu",
    memory: Memory = None,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Plan and build with explicit runs: drop these attentions, fuse these runs."""
    from ffn_fusion.errors import UsageError
    from ffn_fusion.pipeline.recipe import BuildSection, RepairSection, recipe_from_options

    if not settings.explicit:
        raise UsageError("nothing to do: neither --without-attention nor --runs", "say what to change, like --runs 5-9")
    recipe = recipe_from_options(
        model=model,
        revision=revision,
        output=output,
        seed=seed,
        device=device,
        memory=memory,
        plan=settings,
        repair=RepairSection(enabled=bool(text) and repair, texts=tuple(text or ()), tokens=tokens, context=context),
        build=BuildSection(width_multiple=width_multiple, max_shard_bytes=max_shard_bytes),
    )
    _build(recipe, None, dry_run, as_json)


def _build(recipe: Recipe, decided: Blueprint | None, dry_run: bool, as_json: bool) -> None:
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.report.estimate_grids import repair_estimate_grid, repair_json
    from ffn_fusion.report.training_grids import gains_grid, repairs_grid
    from ffn_fusion.surgery.repairs import read_repairs

    output = recipe.output
    with progress_bars() as bars:
        listener = TerminalListener(bars)
        job = begin(recipe, ("repair", "build"), space=Workspace.hidden(output), decided=decided, listener=listener)
        job.carry_out(dry_run=dry_run)
    estimate = job.estimates.get("repair")
    record = None if dry_run else read_repairs(output)
    if as_json:
        repair = repair_json(estimate) if estimate else record
        about = {"blueprint": job.blueprint.model_dump(mode="json"), "about": plan_lines(job.parent, job.plan)}
        emit({"output": None if dry_run else str(output), **about, "repair": repair})
    elif estimate:
        say(repair_estimate_grid(estimate))
    elif record:
        say(repairs_grid(record), gains_grid(record), f"child: {output}", err=False)
    elif not dry_run:
        say(UNREPAIRED_LINE)
        say(f"child: {output}", err=False)
