"""``ffn-fusion build`` and ``fuse``: write the child, from a blueprint or from explicit runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.cli.console import JsonFlag, emit, plan_lines, progress_bars, say, show_plan
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
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.pipeline.recipe import BuildSection
    from ffn_fusion.pipeline.repairing import ChildRepairing

UNREPAIRED_LINE = "the child is unrepaired: give --text, and what surgery cost is repaired in closed form"
_EXPLICIT = ("without_attention", "runs", "max_width", "width_curve", "norm", "for_engines")
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
    from ffn_fusion.analysis.cost_count import counted_speedup
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.blueprint.choices import Selection
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.pipeline.planning import for_engines
    from ffn_fusion.pipeline.recipe import BuildSection
    from ffn_fusion.portability.rule import parse_engines
    from ffn_fusion.surgery.build import check_blueprint

    decided = Blueprint.load(blueprint)
    checkpoint = open_model(model, revision=revision)
    check_blueprint(checkpoint, decided)
    plan = Plan(decided, Selection(()), counted_speedup(checkpoint.spec, decided))
    plan = for_engines(plan, checkpoint.spec, parse_engines(for_engine or ()), width_multiple)
    section = BuildSection(width_multiple=width_multiple, max_shard_bytes=max_shard_bytes)
    repairing = _repairing(checkpoint, plan, output, text if repair else None, tokens, context, seed, device, memory)
    _build(checkpoint, plan, output, section, repairing, dry_run, as_json)


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
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.errors import UsageError
    from ffn_fusion.pipeline.planning import make_plan
    from ffn_fusion.pipeline.recipe import BuildSection
    from ffn_fusion.pipeline.widths import limited

    if not settings.explicit:
        raise UsageError("nothing to do: neither --without-attention nor --runs", "say what to change, like --runs 5-9")
    checkpoint = open_model(model, revision=revision)
    plan = make_plan(checkpoint, None, limited(settings, checkpoint.spec), width_multiple=width_multiple)
    section = BuildSection(width_multiple=width_multiple, max_shard_bytes=max_shard_bytes)
    repairing = _repairing(checkpoint, plan, output, text if repair else None, tokens, context, seed, device, memory)
    _build(checkpoint, plan, output, section, repairing, dry_run, as_json)


def _repairing(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    text: list[Any] | None,
    tokens: int,
    context: int,
    seed: int,
    device: str,
    memory: str | None,
) -> ChildRepairing | None:
    """The repair that the options ask for; None without text, or where nothing was changed."""
    from ffn_fusion.pipeline.recipe import repair_from_options
    from ffn_fusion.pipeline.repairing import ChildRepairing
    from ffn_fusion.repair.places import places
    from ffn_fusion.units import parse_bytes

    if not text or not places(plan.blueprint):
        return None
    section = repair_from_options(texts=tuple(text), tokens=tokens, context=context)
    budget = parse_bytes(memory) if memory else None
    return ChildRepairing.of(checkpoint, plan.blueprint, section, output, seed, device, budget)


def _build(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    section: BuildSection,
    repairing: ChildRepairing | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from ffn_fusion.checkpoint.staging import check_target
    from ffn_fusion.cli.passes import repair_json, show_repair_plan
    from ffn_fusion.cli.tables import gains_table, repairs_table
    from ffn_fusion.pipeline.stages import build_child
    from ffn_fusion.surgery.child import Child

    check_target(output, checkpoint.folder)
    if not as_json:
        show_plan(checkpoint, plan)
    record: dict[str, Any] = {}
    if dry_run:
        if repairing:
            planned = repairing.repairing.plan()
            record = repair_json(planned)
            show_repair_plan(planned)
    else:
        with progress_bars() as bars:
            if repairing:
                with repairing.child(section.width_multiple, show_repair_plan, bars) as (child, record):
                    build_child(child, section, output, bars)
            else:
                build_child(Child(checkpoint, plan.blueprint, section.width_multiple), section, output, bars)
    if as_json:
        about = {"blueprint": plan.blueprint.model_dump(mode="json"), "about": plan_lines(checkpoint, plan)}
        emit({"output": None if dry_run else str(output), **about, "repair": record or None})
    elif not dry_run:
        if repairing:
            say(repairs_table(record), gains_table(record), err=False)
        else:
            say(UNREPAIRED_LINE)
        say(f"child: {output}", err=False)
