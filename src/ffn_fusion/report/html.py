"""The report: one HTML file that needs nothing else, neither network nor scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.errors import MissingExtraError, OutputError
from ffn_fusion.report import evidence_grids, model_grids, palette
from ffn_fusion.report.formats import byte_count, change, printable
from ffn_fusion.report.grid import MODEL, Grid
from ffn_fusion.report.latency_grids import latency_grid, work_grid
from ffn_fusion.report.machine_grids import modelled_grid
from ffn_fusion.report.quality_grids import controls_grid, quality_grid
from ffn_fusion.report.summary import KeyFigure, key_figures, sentence
from ffn_fusion.report.task_grids import tasks_grid
from ffn_fusion.report.training_grids import repairs_grid, stages_grid

if TYPE_CHECKING:
    from ffn_fusion.analysis.evidence import Evidence, Geometry, Part, Statistic
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.latency.hardware import Prediction
    from ffn_fusion.latency.timing import Latency
    from ffn_fusion.portability.rule import EngineCheck

_RUNS_SHOWN = 12

_MAPS: dict[Part, str] = {
    "block": "whole blocks",
    "attention": "attentions alone",
    "ffn": "FFNs alone",
}
_MORE: dict[Statistic, str] = {"median": "median", "p95": "95th percentile"}
"""Maps that are folded away; each adds little, since a map has one pixel per entry."""


@dataclass(frozen=True)
class ReportData:
    """All that a report can show; a section whose data is None or empty is left out.

    ``costs``: name -> (parent, child), for ``parameters``, ``bytes``, ``kv_bytes_per_token`` and
    ``sequential_steps``; other names are shown as they are.
    ``samples``: (prompt, the parent's continuation, the child's).
    ``child_geometry``: the child's own, each with the middle of the parent blocks that the child's block stands for.
    ``repairs``: the record of what repair did (``repairs.json``).
    ``distillation``: the record of what it learnt (``distillation.json``).
    ``engines``: what each makes of the child.
    """

    title: str
    model_name: str
    revision: str | None
    blueprint: Blueprint
    evidence: Evidence | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    recipe_yaml: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    child_geometry: Sequence[tuple[float, Geometry]] | None = None
    repairs: Mapping[str, Any] | None = None
    distillation: Mapping[str, Any] | None = None
    engines: Sequence[EngineCheck] = ()
    predictions: Sequence[Mapping[str, Prediction]] = ()


def write_report(path: Path, report: ReportData) -> None:
    """Write the report as one self-contained HTML file.

    Raises:
        MissingExtraError: matplotlib or jinja2 isn't installed.
        OutputError: ``path`` can't be written.
    """
    content = render_report(report).encode()
    try:
        write_atomic(path, content)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", "choose a place that can be written") from error


def render_report(report: ReportData) -> str:
    """The report as HTML text; the same data gives the same text."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        message = "reports need jinja2, which isn't installed"
        raise MissingExtraError(message, "pip install 'ffn-fusion[report]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("ffn_fusion.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(**_context(report)) + "\n"


def _context(report: ReportData) -> dict[str, Any]:
    blueprint, quality, latency, evidence = report.blueprint, report.quality, report.latency, report.evidence
    return {
        "report": report,
        "sentence": _unbroken(sentence(blueprint)),
        "figures": [
            replace(figure, note=_unbroken(figure.note))
            for figure in (*key_figures(blueprint, quality, latency), *_kv_figure(report))
        ],
        "plan": model_grids.plan_grid(blueprint),
        "costs": model_grids.costs_grid(report.costs),
        "quality": quality_grid(quality) if quality else None,
        "controls": controls_grid(quality.controls) if quality and quality.controls else None,
        "tasks": tasks_grid(quality.tasks) if quality and quality.tasks else None,
        "engines": model_grids.engines_grid(report.engines) if report.engines else None,
        "latency": latency_grid(latency) if latency else None,
        "work": work_grid(latency) if latency else None,
        "modelled": modelled_grid(report.predictions) if report.predictions else None,
        "setting": next(iter(report.predictions[0].values())).setting if report.predictions else None,
        "repairs": repairs_grid(report.repairs) if report.repairs else None,
        "stages": stages_grid(report.distillation) if report.distillation else None,
        "measured_on": evidence_grids.measured_on(evidence) if evidence else "",
        "dependency_measured_on": evidence_grids.dependency_measured_on(evidence) if evidence else "",
        "importance": _importance(evidence) if evidence else [],
        "measured_runs": evidence_grids.runs_grid(evidence, blueprint, _RUNS_SHOWN) if evidence else None,
        "all_measured_runs": evidence_grids.runs_grid(evidence, blueprint) if evidence else None,
        "side_by_side": evidence_grids.side_by_side_grid(evidence, blueprint) if evidence else None,
        "reverse_order": evidence_grids.reverse_order_grid(evidence) if evidence else None,
        "MODEL": MODEL,
        "colours": _colours(report),
        "ink": palette,
        "drawings": _drawings(report),
        "maps": _heat_maps(report, "mean"),
        "more_maps": [(name, maps) for statistic, name in _MORE.items() if (maps := _heat_maps(report, statistic))],
    }


def _unbroken(text: str) -> str:
    """The text with ranges such as 86-100 kept on one line."""
    return re.sub(r"(?<=\d)-(?=\d)", "\N{NON-BREAKING HYPHEN}", text)


def _drawings(report: ReportData) -> dict[str, Any]:
    from markupsafe import Markup

    from ffn_fusion.report import figures  # matplotlib: only when a report is really drawn

    evidence, blueprint = report.evidence, report.blueprint
    drawings = {"blocks": figures.blocks_diagram(blueprint)}
    if evidence and evidence.geometry:
        drawings["geometry"] = figures.geometry_chart(evidence.geometry, blueprint, report.child_geometry)
    if evidence and evidence.removals:
        drawings["importance"] = figures.importance_bars(evidence, blueprint)
    if evidence and evidence.runs:
        drawings["runs"] = figures.runs_chart(evidence, blueprint)
    if report.repairs:
        drawings["repairs"] = figures.repair_bars(report.repairs, blueprint)
    if report.distillation and figures.has_curve(report.distillation):
        drawings["distillation"] = figures.distillation_curve(report.distillation)
    if report.quality and report.latency:
        drawings["quality_speed"] = figures.quality_speed_plot(report.quality, report.latency, report.predictions)
    return {name: Markup(svg) for name, svg in drawings.items()}  # ours, and escaped inside


def _heat_maps(report: ReportData, statistic: Statistic) -> list[Any]:
    from markupsafe import Markup

    from ffn_fusion.report.figures import dependency_heatmap

    if report.evidence is None:
        return []
    dropped, runs = report.blueprint.dropped_attentions, report.blueprint.runs
    evidence = report.evidence
    title = f", {_MORE[statistic]}" if statistic in _MORE else ""
    return [
        Markup(dependency_heatmap(evidence.dependency(part, statistic), _MAPS[part] + title, dropped, runs))
        for part in _MAPS
        if f"{part}.{statistic}" in evidence.matrices
    ]


def _importance(evidence: Evidence) -> list[tuple[str, Grid]]:
    """What is gone and the table of it, for every part measured."""
    parts = evidence_grids.measured_parts(evidence)
    return [(evidence_grids.ONE_OF[part], evidence_grids.importance_grid(evidence, None, part)) for part in parts]


def _colours(report: ReportData) -> dict[str, str]:
    scored = report.quality.models if report.quality else ()
    timed = report.latency.models if report.latency else ()
    models = tuple(dict.fromkeys((*scored, *timed)))
    return {printable(model): colour for model, colour in palette.model_colours(models).items()}


def _kv_figure(report: ReportData) -> list[KeyFigure]:
    parent, child = report.costs.get("kv_bytes_per_token", (0, 0))
    if not parent:
        return []
    return [
        KeyFigure(change(child / parent - 1, 0), "KV cache", f"{byte_count(parent)} → {byte_count(child)} per token")
    ]
