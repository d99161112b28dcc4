"""``ffn-fusion repair``: quality back without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.options import Context, Device, Memory, Output, Seed, Texts, Tokens, WidthMultiple
from ffn_fusion.repair.settings import (
    DEFAULT_ATTENTION,
    DEFAULT_HELD_OUT,
    DEFAULT_HORIZON,
    DEFAULT_TOKENS,
    DEFAULT_WEIGHTING,
)


def repair(
    child: Annotated[Path, typer.Argument(help="A child that ffn-fusion made, or a blueprint file.", metavar="CHILD")],
    parent: Annotated[str, typer.Option(help="The model it was made of.")],
    output: Output,
    text: Texts = None,
    tokens: Tokens = DEFAULT_TOKENS,
    context: Context = 512,
    horizon: Annotated[
        int, typer.Option(help="So many unchanged blocks behind a changed one take part.", min=0)
    ] = DEFAULT_HORIZON,
    attention: Annotated[
        bool, typer.Option("--attention/--ffn-only", help="Solve the attentions' output projections too.")
    ] = DEFAULT_ATTENTION,
    target: Annotated[
        str, typer.Option(help="Whose states to reach: parent, or sequential (the same child, never fused).")
    ] = "parent",
    held_out: Annotated[
        float, typer.Option(help="Share of the text that isn't fitted and decides.", min=0.01, max=0.9)
    ] = DEFAULT_HELD_OUT,
    weighting: Annotated[
        str, typer.Option(help="Against outlier tokens: none, capped or inverse-energy.")
    ] = DEFAULT_WEIGHTING,
    lambdas: Annotated[str | None, typer.Option(help="Ridges to try, like 0.3,0.1,0.03.")] = None,
    bias: Annotated[bool, typer.Option("--bias/--no-bias", help="Solve biases too, where the model has any.")] = True,
    solver: Annotated[
        str, typer.Option(help="primal factorises width^2 numbers, dual tokens^2, with one solution; auto: the fewer.")
    ] = "auto",
    width_multiple: WidthMultiple = 256,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option(help="To compute in: float32, bfloat16, float16, auto (the model's).")
    ] = "float32",
    memory: Memory = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Solve a child's changed blocks anew on text, in closed form, so that its states reach the parent's."""
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.staging import DISTILLATION
    from ffn_fusion.errors import DataError, UsageError
    from ffn_fusion.pipeline.recipe import BuildSection, recipe_from_options, repair_from_options
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.repair.places import places
    from ffn_fusion.report.estimate_grids import repair_estimate_grid, repair_json
    from ffn_fusion.report.training_grids import gains_grid, repairs_grid
    from ffn_fusion.surgery.repairs import read_repairs

    section = repair_from_options(
        texts=tuple(text or ()),
        tokens=tokens,
        context=context,
        horizon=horizon,
        attention=attention,
        target=target,
        held_out=held_out,
        weighting=weighting,
        lambdas=lambdas,
        bias=bias,
        solver=solver,
        dtype=dtype,
    )
    if (child / DISTILLATION).is_file():
        raise UsageError(
            f"{child}: distilled, and repair solves anew from the parent's weights",
            "repair first and distil then; or name its blueprint.json, to begin again without the distillation",
        )
    decided = Blueprint.load(child if child.is_file() else child / "blueprint.json")
    if not places(decided):
        raise DataError(f"{child}: nothing to repair, no block of it was changed", "name a child that was changed")
    recipe = recipe_from_options(
        model=parent,
        output=output,
        seed=seed,
        device=device,
        memory=memory,
        repair=section,
        build=BuildSection(width_multiple=width_multiple),
    )
    with progress_bars() as bars:
        listener = TerminalListener(bars)
        job = begin(recipe, ("repair", "build"), space=Workspace.hidden(output), decided=decided, listener=listener)
        job.carry_out(dry_run=dry_run)
    if dry_run:
        plan = job.estimates["repair"]
        if as_json:
            emit(repair_json(plan))
        else:
            say(repair_estimate_grid(plan), "dry run: nothing was repaired", err=False)
        return
    record = read_repairs(output)
    assert record is not None
    if as_json:
        emit({"output": str(output), **record})
        return
    say(repairs_grid(record), gains_grid(record), f"child: {output}", err=False)
