"""The Pareto front of a sweep: the summed score of the best child against what it takes."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from ffn_fusion.report import palette
from ffn_fusion.report.search_grids import parent_value
from ffn_fusion.report.svg import render, render_png
from ffn_fusion.search.budgets import RESOURCES

from matplotlib.ticker import FuncFormatter  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.search.search import Outcome

_SIZE = (6.6, 3.9)


def pareto_svg(outcome: Outcome, name: str) -> str:
    """The front as SVG text. Args: name: the resource that was swept."""
    return render(lambda figure: _draw(figure, outcome, name), *_SIZE, f"line: score against {RESOURCES[name].words}")


def pareto_png(outcome: Outcome, name: str) -> bytes:
    """The front as a PNG file."""
    return render_png(lambda figure: _draw(figure, outcome, name), *_SIZE)


def _draw(figure: Any, outcome: Outcome, name: str) -> None:
    axes, resource = figure.add_subplot(), RESOURCES[name]
    points = [(found.values[name], found.score, found.error) for found in outcome.found]
    x, y, errors = zip(*points, strict=True)
    bars = [0.0 if isnan(error) else error for error in errors]
    axes.errorbar(
        x, y, bars, color=palette.FUSED, marker="o", ms=5, lw=1.2, elinewidth=1, capsize=2, label="best child"
    )
    axes.plot(parent_value(outcome.problem, name), 0, marker="s", ms=6, ls="", color=palette.PARENT, label="parent")
    axes.set_xlabel(f"{resource.words} (batch {outcome.problem.load.batch})")
    metric = outcome.problem.candidates.metric
    axes.set_ylabel("summed KL from parent\n(nats a token)" if metric == "kl" else f"summed {metric}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: resource.show(value)))
    axes.locator_params(axis="x", nbins=6)
    axes.margins(0.06, 0.1)
    axes.grid(True, axis="both")
    axes.legend(loc="upper left" if resource.least else "upper right")
