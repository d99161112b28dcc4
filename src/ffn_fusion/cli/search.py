"""``ffn-fusion search``: tables of scores and costs, and budgets -> the best child."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import DryRun
from ffn_fusion.search.settings import SearchSettings

if TYPE_CHECKING:
    from ffn_fusion.families import ModelSpec
    from ffn_fusion.search.candidates import Candidates
    from ffn_fusion.search.problem import Found
    from ffn_fusion.search.search import Outcome


@options
def search(
    scores: Annotated[
        Path, typer.Option(help="Scores: a .csv or .parquet table, or a folder of NVIDIA's score files.")
    ],
    costs: Annotated[Path, typer.Option(help="Costs: a .csv or .parquet table, or NVIDIA's subblock_stats.json.")],
    settings: SearchSettings,
    model: Annotated[
        str | None,
        typer.Option(help="The parent, for --for-engine and where the scores don't describe it.", metavar="MODEL"),
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of NVIDIA's score files.")] = "kl_div_loss",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A blueprint (.json), or the choices as a table (.csv, .parquet)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="The front of a sweep, as .svg or .png.")] = None,
    controls: Annotated[bool, typer.Option("--controls", help="Also choose by simpler rules, to compare.")] = False,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Choose one sub-block for every place of a model: the least summed score within any budgets."""
    from ffn_fusion.report.search_grids import outcome_values, size_lines
    from ffn_fusion.search.search import problems_of
    from ffn_fusion.search.search import search as solve

    spec = _spec(model)
    candidates = _read(scores, costs, metric, spec, model)
    _check_files(output, plot, candidates, settings)
    allowed = _allowed(candidates, settings, spec)
    if dry_run:
        for line in size_lines(problems_of(candidates, settings, allowed)[0]):
            say(line, err=False)
        return
    outcome = solve(candidates, settings, allowed)
    written = [_write(found, path, candidates, settings, spec) for found, path in _numbered(outcome, output)]
    if plot and settings.sweep:
        _plot(outcome, settings.sweep.name, plot)
    if as_json:
        emit(outcome_values(outcome))
        return
    _show(outcome, settings, controls)
    for line in (*written, *([f"plot: {plot}"] if plot else [])):
        say(line, err=False)


def _spec(model: str | None) -> ModelSpec | None:
    from ffn_fusion.pipeline.sizes import model_sizes

    return None if model is None else model_sizes(model)


def _read(scores: Path, costs: Path, metric: str, spec: ModelSpec | None, model: str | None) -> Candidates:
    from dataclasses import replace

    from ffn_fusion.errors import DataError
    from ffn_fusion.search.candidates import read_tables
    from ffn_fusion.search.nvidia import read_nvidia

    theirs = scores.is_dir() or costs.suffix == ".json"
    found = read_nvidia(scores, costs, metric) if theirs else read_tables(scores, costs)
    if spec is None or model is None:
        return found
    if len(spec.blocks) != found.blocks:
        raise DataError(f"the tables are of {found.blocks} blocks, {model} has {len(spec.blocks)}", "take tables of it")
    return found if found.parent else replace(found, parent=spec.parent(model))


def _check_files(output: Path | None, plot: Path | None, candidates: Candidates, settings: SearchSettings) -> None:
    from ffn_fusion.errors import OutputError, UsageError

    if output and output.suffix not in (".json", ".csv", ".parquet"):
        raise UsageError(f"{output}: what is found ends in .json, .csv or .parquet", "rename it")
    if output and output.suffix == ".json" and candidates.parent is None:
        raise UsageError(
            "a blueprint needs its parent, which the scores don't describe", "give --model, or write -o choices.csv"
        )
    if plot and (plot.suffix not in (".svg", ".png") or not settings.sweep):
        raise UsageError(f"{plot}: a plot is of a --sweep, and ends in .svg or .png", "give --sweep, or leave it out")
    for path in filter(None, (output, plot)):
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: no such folder", "make it first")


def _allowed(candidates: Candidates, settings: SearchSettings, spec: ModelSpec | None) -> list[int] | None:
    from ffn_fusion.errors import UsageError
    from ffn_fusion.search.child import loadable

    if not settings.for_engines:
        return None
    if spec is None:
        raise UsageError("--for-engine needs to know the parent", "give --model")
    return loadable(candidates, spec, settings.for_engines)


def _numbered(outcome: Outcome, output: Path | None) -> list[tuple[Found, Path]]:
    """Each child with its file: ``child.json``, or of several ``child-1.json`` and so on."""
    if output is None:
        return []
    if len(outcome.found) == 1:
        return [(outcome.found[0], output)]
    named = ((found, f"{output.stem}-{n}{output.suffix}") for n, found in enumerate(outcome.found, start=1))
    return [(found, output.with_name(name)) for found, name in named]


def _write(found: Found, path: Path, candidates: Candidates, settings: SearchSettings, spec: ModelSpec | None) -> str:
    from ffn_fusion.search.child import blueprint_of, check_loadable, score_rows
    from ffn_fusion.search.table import write_scores

    if path.suffix != ".json":
        write_scores(path, score_rows(found.chosen, candidates.metric))
        return f"choices: {path}"
    assert candidates.parent is not None
    blueprint = blueprint_of(found.chosen, candidates.parent)
    if spec and settings.for_engines:
        check_loadable(blueprint, spec, settings.for_engines)
    blueprint.save(path)
    return f"blueprint: {path}"


def _plot(outcome: Outcome, name: str, path: Path) -> None:
    from ffn_fusion.report.pareto_figure import pareto_png, pareto_svg

    if path.suffix == ".svg":
        path.write_text(pareto_svg(outcome, name), encoding="utf-8")
    else:
        path.write_bytes(pareto_png(outcome, name))


def _show(outcome: Outcome, settings: SearchSettings, controls: bool) -> None:
    from ffn_fusion.report.search_grids import child_grid, children_grid, choices_grid
    from ffn_fusion.search.controls import best_per_block, greedy, random_child

    problem = outcome.problem
    if settings.sweep:
        points, swept = ((str(p.amount), p.found) for p in outcome.points), settings.sweep.name
        say(children_grid(problem, points, "budget", swept), err=False)
        return
    say(child_grid(outcome), choices_grid(outcome.found[0], problem.candidates.metric), err=False)
    if len(outcome.batches) > 1:
        say(children_grid(problem, ((str(b), found) for b, found in outcome.batches.items()), "solved at"), err=False)
    if len(outcome.found) > 1:
        say(children_grid(problem, ((str(n), f) for n, f in enumerate(outcome.found, 1)), "child"), err=False)
    if controls:
        rules = (
            ("search", outcome.found[0]),
            ("greedy", greedy(problem)),
            ("best of each block", best_per_block(problem)),
            *((f"random {seed}", random_child(problem, seed)) for seed in range(3)),
        )
        say(children_grid(problem, rules, "chosen by"), err=False)
