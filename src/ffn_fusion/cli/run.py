"""``ffn-fusion run`` and ``optimize``: the main job, from a recipe or with defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.analysis.settings import NAMED, PlanSettings
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.from_settings import Named, Only, Without, options
from ffn_fusion.cli.options import DryRun, Model, Output, Revision, with_device
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.engines.settings import BenchSettings
from ffn_fusion.evaluation.settings import EvaluationSettings
from ffn_fusion.search.settings import BUDGETS, SearchSettings
from ffn_fusion.settings import ComputeSettings

if TYPE_CHECKING:
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.result import Result


def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/ and docs/recipe.md.", metavar="RECIPE")],
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Carry out a recipe: analyze, plan, build, evaluate, bench, report. Run it again to resume."""
    from ffn_fusion.pipeline.recipe import Recipe

    _run(with_device(Recipe.load(recipe)), dry_run, as_json)


@options
def optimize(
    model: Model,
    output: Output,
    plan: Annotated[PlanSettings, Without(*NAMED, "repair")],
    search: Annotated[SearchSettings, Only(*BUDGETS)],
    calibration: Annotated[TextSettings, Only("texts")],
    evaluation: Annotated[EvaluationSettings, Only("texts", "tasks"), Named(texts="--eval-text")],
    bench: Annotated[BenchSettings, Only("engine", "engine_program")],
    compute: ComputeSettings,
    opening: OpenSettings,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """The whole job with defaults; writes its recipe to OUT.run/recipe.yaml."""
    from ffn_fusion.pipeline.recipe import Recipe

    sections = {"plan": plan, "search": search, "calibration": calibration, "evaluation": evaluation, "bench": bench}
    recipe = Recipe(
        model=model, revision=revision, output=output, **dict(with_device(compute)), **dict(opening), **sections
    )
    _run(recipe.resolved(Path.cwd()), dry_run, as_json)


def _run(recipe: Recipe, dry_run: bool, as_json: bool) -> None:
    from ffn_fusion.pipeline.run import run

    with progress_bars() as bars:
        result = run(recipe, dry_run=dry_run, listener=TerminalListener(bars))
    if as_json:
        emit(_as_json(result))
    elif dry_run:
        say(f"dry run: nothing was built. Evidence and plan: {result.workspace.folder}", err=False)
    else:
        _show(result)


def _show(result: Result) -> None:
    from ffn_fusion.checkpoint.reader import open_folder
    from ffn_fusion.portability.check import check
    from ffn_fusion.report.latency_grids import latency_grid
    from ffn_fusion.report.model_grids import engines_line
    from ffn_fusion.report.quality_grids import quality_grid
    from ffn_fusion.report.task_grids import tasks_grid

    assert result.quality is not None
    say(quality_grid(result.quality), err=False)
    if result.quality.tasks:
        say(tasks_grid(result.quality.tasks), err=False)
    if result.latency:
        say(latency_grid(result.latency), err=False)
    for sample in result.samples:
        say(f"\nprompt  {sample.prompt}", f"parent  {sample.parent!r}", f"child   {sample.child!r}", err=False)
    say(
        "",
        f"engines:    {engines_line(check(open_folder(result.workspace.output)))}",
        f"checkpoint: {result.workspace.output}",
        f"report:     {result.workspace.report}",
        f"recipe:     {result.workspace.recipe}",
        err=False,
    )


def _as_json(result: Result) -> dict[str, object]:
    return {
        "checkpoint": str(result.workspace.output),
        "report": str(result.workspace.report),
        "blueprint": result.plan.blueprint.model_dump(mode="json"),
        "damage": result.plan.selection.score,
        "counted_speedup": result.plan.counted_speedup,
        "quality": result.quality.model_dump(mode="json") if result.quality else None,
        "latency": result.latency.model_dump(mode="json") if result.latency else None,
        "samples": [vars(sample) for sample in result.samples],
        **({"distillation": result.distillation} if result.distillation else {}),
        **(
            {"distillation_plans": [vars(plan) for plan in result.distillation_plans]}
            if result.distillation_plans
            else {}
        ),
    }
