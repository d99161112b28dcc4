"""Figures are well-formed, the same every time, and share no id."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from makers import block_spec, llama_config

from ffn_fusion.analysis.evidence import Geometry
from ffn_fusion.blueprint import Blueprint, Parent
from ffn_fusion.families import read_spec
from ffn_fusion.latency.hardware import Prediction, predict
from ffn_fusion.latency.machines import find_machine
from ffn_fusion.latency.work import Setting
from ffn_fusion.report import figures
from ffn_fusion.report.quality_speed_figure import modelled_at

SIZES = {"parent": 12, "fused": 8, "unscored": 10}
Drawing = Callable[[Any], str]

DRAWINGS: dict[str, Drawing] = {
    "heat map": lambda made: figures.dependency_heatmap(
        made.evidence.dependency("block"),
        "a <b> & $c$",
        made.blueprint.dropped_attentions,
        made.blueprint.runs,
    ),
    "95th percentile": lambda made: figures.dependency_heatmap(made.evidence.dependency("ffn", "p95"), "p95"),
    "geometry": lambda made: figures.geometry_chart(made.evidence.geometry, made.blueprint),
    "geometry with a child": lambda made: figures.geometry_chart(
        made.evidence.geometry,
        made.blueprint,
        [(row.block + 0.5, row) for row in reversed(made.evidence.geometry) if row.block < 6],
    ),
    "importance": lambda made: figures.importance_bars(made.evidence, made.blueprint),
    "runs": lambda made: figures.runs_chart(made.evidence, made.blueprint),
    "blocks": lambda made: figures.blocks_diagram(made.blueprint),
    "quality and speed": lambda made: figures.quality_speed_plot(made.quality, made.latency),
}


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("fixture", ["small", "nemotron"])
def test_well_formed_and_deterministic(name: str, fixture: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(fixture)
    before = dict(mpl.rcParams)
    svg = DRAWINGS[name](made)
    assert dict(mpl.rcParams) == before  # nobody else's settings are touched
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.startswith("<svg")
    assert "<metadata" not in svg
    assert DRAWINGS[name](made) == svg


def test_figures_of_one_page_share_no_id(small: Any, thirty: Any) -> None:
    ids: list[str] = []
    for draw in DRAWINGS.values():
        for made in (small, thirty):
            svg = draw(made)
            own = re.findall(r'\bid="([^"]*)"', svg)
            assert set(re.findall(r'(?:url\(|href=")#([^")]*)', svg)) <= set(own)  # and each finds its own
            ids += own if draw is not DRAWINGS["quality and speed"] or made is small else []
    assert len(ids) == len(set(ids))


def test_styles_of_a_figure_stay_in_it(small: Any) -> None:
    svg = figures.importance_bars(small.evidence, small.blueprint)
    name = ElementTree.fromstring(svg).get("id")
    assert f"#{name} *{{" in svg
    assert "\n*{" not in svg
    assert ">*{" not in svg


def test_blocks_diagram_draws_every_sub_block(thirty: Any) -> None:
    svg = figures.blocks_diagram(thirty.blueprint)
    root = ElementTree.fromstring(svg)
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(title.startswith("block ") for title in titles) == 60
    assert sum(title.startswith("child block") for title in titles) == 48
    assert "child block 5 (parent 5-7): 3 FFNs fused, 4,608 wide" in titles
    assert "block 8: attention, dropped" in titles
    assert ">12 sub-blocks fewer<" in svg


@pytest.mark.parametrize("fixture", ["small", "thirty", "nemotron", "large"])
def test_blocks_diagram_stays_inside_and_labels_do_not_overlap(fixture: str, request: pytest.FixtureRequest) -> None:
    blueprint = request.getfixturevalue(fixture).blueprint
    root = ElementTree.fromstring(figures.blocks_diagram(blueprint))
    svg = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = [group for group in root.iter(f"{svg}g") if re.search(r"-[pc]\d+$", group.get("id", ""))]
    assert boxes
    for box in boxes:
        (path,) = box.findall(f"{svg}path")
        numbers = list(map(float, re.findall(r"-?[\d.]+(?:e-?\d+)?", path.attrib["d"])))
        assert all(0 <= x <= width for x in numbers[::2])
        assert all(0 <= y <= height for y in numbers[1::2])
    texts = [text for text in root.iter(f"{svg}text") if (text.text or "").endswith(" wide")]
    assert len(texts) == len(blueprint.runs)
    points = 8.0  # DejaVu Sans, whose digits are 0.64 em wide
    edges = [(float(t.attrib["x"]), 0.64 * points * len(t.text or "")) for t in texts]
    assert all(right[0] - left[0] >= (left[1] + right[1]) / 2 for left, right in pairwise(edges))


def test_blocks_diagram_of_odd_parents() -> None:
    linear = block_spec(attention="linear", ffn="linear", ffn_width=0)
    empty = block_spec(attention=None, ffn=None, ffn_width=0)
    for blocks in ((linear, empty, linear), (empty,), (linear,)):
        svg = figures.blocks_diagram(Blueprint.identity(Parent(name="odd", blocks=blocks)))
        ElementTree.fromstring(svg)


def test_heat_map_scale_is_the_papers(small: Any) -> None:
    svg = figures.dependency_heatmap(small.evidence.dependency("ffn"), "FFNs")
    for label in ("2⁻⁹", "2⁻⁵", "2⁻¹"):
        assert label in svg


def test_heat_map_takes_zeros_and_missing_values() -> None:
    matrix = np.zeros((4, 4))
    matrix[:, 2] = np.nan
    ElementTree.fromstring(figures.dependency_heatmap(matrix, "zeros"))


def written(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_geometry_says_what_is_drawn(thirty: Any) -> None:
    shown = written(figures.geometry_chart(thirty.evidence.geometry, thirty.blueprint))
    assert {"whole block", "its FFN", "its attention", "in a fused run", "attention dropped, not fused"} <= set(shown)
    assert [text.split(":")[0] for text in shown if ":" in text] == ["turn", "direction", "size"]
    assert "the child's block" not in shown
    child = [(float(row.block), row) for row in thirty.evidence.geometry]
    assert "the child's block" in written(figures.geometry_chart(thirty.evidence.geometry, thirty.blueprint, child))


def test_geometry_of_whole_blocks_alone_and_of_an_unchanged_parent(small: Any) -> None:
    rows = [row for row in small.evidence.geometry if row.part == "block"]
    shown = written(figures.geometry_chart(rows, Blueprint.identity(small.blueprint.parent)))
    assert "whole block" in shown
    assert not {"its FFN", "its attention", "in a fused run", "attention dropped, not fused"} & set(shown)


def test_geometry_takes_zeros_and_missing_blocks(small: Any) -> None:
    rows = [Geometry(part="block", block=i, turn=0.0, direction=float("nan"), size=0.0) for i in (0, 3)]
    ElementTree.fromstring(figures.geometry_chart(rows, small.blueprint))


def test_importance_has_a_panel_a_part(small: Any) -> None:
    every = written(figures.importance_bars(small.evidence, small.blueprint))
    panels = ["without one attention", "without one FFN", "without one whole block"]
    assert [text for text in every if text.startswith("without")] == panels
    assert {"kept", "dropped", "on its own", "fused"} <= set(every)
    attentions = small.evidence.model_copy(update={"removals": small.evidence.importance})
    only = written(figures.importance_bars(attentions, small.blueprint))
    assert not [text for text in only if text.startswith("without")]
    assert {"kept", "dropped"} <= set(only)


def test_plot_leaves_out_what_was_not_timed(small: Any) -> None:
    svg = figures.quality_speed_plot(small.quality, small.latency)
    assert ">fused<" in svg
    assert ">random<" not in svg


def modelled() -> list[dict[str, Prediction]]:
    """What a machine would take for three models, of which one was never scored; at both batches."""
    machine = find_machine("h100")
    specs = {name: read_spec(llama_config(num_hidden_layers=blocks)) for name, blocks in SIZES.items()}
    return [{name: predict(machine, spec, Setting(4, batch)) for name, spec in specs.items()} for batch in (1, 8)]


def test_what_is_modelled_is_drawn_as_such(small: Any) -> None:
    """Without what was modelled there's no word of it; with it the same dots, and crosses in dashes beside them."""
    before = figures.quality_speed_plot(small.quality, small.latency)
    after = figures.quality_speed_plot(small.quality, small.latency, modelled())
    assert "modelled" not in before
    assert {"modelled, batch 1", "4 x h100, modelled"} <= set(written(after))
    assert "stroke-dasharray" in after
    assert "stroke-dasharray" not in before
    assert set(modelled_at(8, modelled())) == {"4 x h100"}
    assert modelled_at(3, modelled()) == {}


@pytest.mark.parametrize("module", ["figures", "svg", "block_axis", "geometry_figure", "importance_figure"])
def test_without_matplotlib_one_line_says_what_to_install(module: str) -> None:
    code = f"""
import sys
sys.modules["matplotlib"] = None
from ffn_fusion.errors import MissingExtraError
try:
    import ffn_fusion.report.{module}
except MissingExtraError as error:
    print(error.message, "|", error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib" in done.stdout
    assert "pip install 'ffn-fusion[report]'" in done.stdout
