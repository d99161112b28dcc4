"""The report: one HTML file that needs nothing else, neither network nor scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.staging import write_atomic
from ffn_fusion.errors import MissingExtraError, OutputError
from ffn_fusion.report import (
    distillation_tables,
    engine_tables,
    evidence_tables,
    palette,
    prediction_tables,
    repair_tables,
    tables,
)
from ffn_fusion.report.summary import KeyFigure, key_figures, sentence

if TYPE_CHECKING:
    from ffn_fusion.analysis.evidence import Evidence, Geometry, Part, Statistic
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.latency.hardware import Prediction
    from ffn_fusion.latency.timing import Latency
    from ffn_fusion.portability.rule import EngineCheck

_STRETCHES_SHOWN = 12

_COSTS = {
    "parameters": ("Parameters", tables.count),
    "bytes": ("Weights on disk", tables.byte_count),
    "kv_bytes_per_token": ("KV cache a token", tables.byte_count),
    "sequential_steps": ("Sub-blocks in sequence", tables.count),
}

_MAPS: dict[Part, str] = {
    "block": "whole blocks",
    "attention": "attentions alone",
    "ffn": "FFNs alone",
}
_MORE: dict[Statistic, str] = {"median": "median", "p95": "95th percentile"}
"""What is shown only to who asks for it, at the same resolution: a map is one pixel an entry and adds little."""


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
    blueprint, quality, latency = report.blueprint, report.quality, report.latency
    return {
        "report": report,
        "sentence": _unbroken(sentence(blueprint)),
        "figures": [
            replace(figure, note=_unbroken(figure.note))
            for figure in (*key_figures(blueprint, quality, latency), *_kv_figure(report))
        ],
        "plan": tables.plan_grid(blueprint),
        "costs": _costs(report.costs),
        "qualities": [(text, tables.quality_grid(text)) for text in quality.texts] if quality else [],
        "engines": engine_tables.engines_grid(report.engines) if report.engines else None,
        "latency_place": tables.latency_place(latency) if latency else "",
        "latencies": tables.latency_grid(latency) if latency else None,
        "modelled": prediction_tables.modelled_grid(report.predictions) if report.predictions else None,
        "setting": next(iter(report.predictions[0].values())).setting if report.predictions else None,
        "works": tables.work_grid(latency) if latency else None,
        "repairs": repair_tables.repairs_grid(report.repairs) if report.repairs else None,
        "stages": distillation_tables.stages_grid(report.distillation) if report.distillation else None,
        "measured_on": evidence_tables.measured_on(report.evidence) if report.evidence else "",
        "importance": _importance(report),
        "stretches": _stretches(report),
        "all_stretches": _stretches(report, everything=True),
        "reverse_order": _reverse_order(report),
        "colours": _colours(report),
        "ink": palette,
        "drawings": _drawings(report),
        "maps": _heat_maps(report, "mean"),
        "more_maps": [(name, maps) for statistic, name in _MORE.items() if (maps := _heat_maps(report, statistic))],
    }


def _unbroken(text: str) -> str:
    """Ranges like 86-100 stay on one line: a hyphen that doesn't break."""
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
        drawings["stretches"] = figures.stretch_chart(evidence, blueprint)
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


def _importance(report: ReportData) -> list[tuple[str, tables.Grid]]:
    """What is gone and the table of it, for every part measured."""
    if report.evidence is None:
        return []
    return [
        (evidence_tables.ONE_OF[part], evidence_tables.importance_grid(report.evidence, None, part))
        for part in evidence_tables.measured_parts(report.evidence)
    ]


def _reverse_order(report: ReportData) -> tables.Grid | None:
    if report.evidence is None or not report.evidence.reverse_order:
        return None
    return evidence_tables.reverse_order_grid(report.evidence)


def _stretches(report: ReportData, *, everything: bool = False) -> tables.Grid | None:
    if report.evidence is None or not report.evidence.runs:
        return None
    if everything and len(report.evidence.runs) <= _STRETCHES_SHOWN:
        return None
    return evidence_tables.stretches_grid(report.evidence, report.blueprint, None if everything else _STRETCHES_SHOWN)


def _colours(report: ReportData) -> dict[str, str]:
    scored = report.quality.models if report.quality else ()
    timed = report.latency.models if report.latency else ()
    models = tuple(dict.fromkeys((*scored, *timed)))
    return {tables.printable(model): colour for model, colour in palette.model_colours(models).items()}


def _costs(costs: dict[str, tuple[float, float]]) -> tables.Grid | None:
    if not costs:
        return None
    rows = []
    for name, (parent, child) in costs.items():
        label, form = _COSTS.get(name, (tables.printable(name.replace("_", " ")), tables.count))
        change = tables.percent(child / parent - 1, 1) if parent else tables.NOTHING
        rows.append((label, form(parent), form(child), change))
    return tables.Grid(("", "parent", "child", "change"), tuple(rows))


def _kv_figure(report: ReportData) -> list[KeyFigure]:
    parent, child = report.costs.get("kv_bytes_per_token", (0, 0))
    if not parent:
        return []
    note = f"{tables.byte_count(parent)} → {tables.byte_count(child)} a token"
    return [KeyFigure(tables.percent(child / parent - 1, 0), "KV cache", note)]
