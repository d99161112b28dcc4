"""The page: parses, needs no network, escapes what others wrote, leaves out what isn't there."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from makers import llama_config

from ffn_fusion.errors import MissingExtraError, OutputError
from ffn_fusion.families import read_spec
from ffn_fusion.latency.hardware import predict
from ffn_fusion.latency.machines import find_machine
from ffn_fusion.latency.work import Setting
from ffn_fusion.portability.rule import EngineCheck, Problem
from ffn_fusion.report import figures
from ffn_fusion.report.html import render_report, write_report
from ffn_fusion.report.model_grids import engines_grid, engines_line

pytestmark = pytest.mark.usefixtures("drawn")
VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


class Page(HTMLParser):
    """Checks that every element is closed, and notes attributes and headings."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def drawn() -> Iterator[dict[bytes, str]]:
    """Figures by what they show: each is drawn once, not for every page that holds it."""
    drawn: dict[bytes, str] = {}

    def remembered(draw: Callable[..., str]) -> Callable[..., str]:
        def draw_once(*shown: object) -> str:
            key = pickle.dumps((draw.__name__, shown))
            if key not in drawn:
                drawn[key] = draw(*shown)
            return drawn[key]

        return draw_once

    drawings = {name: remembered(getattr(figures, name)) for name in figures.__all__ if name != "has_curve"}
    with patch.multiple(figures, **drawings):
        yield drawn


@pytest.mark.parametrize("fixture", ["small", "thirty", "nemotron"])
def test_parses_and_needs_no_network(fixture: str, request: pytest.FixtureRequest) -> None:
    html = render_report(request.getfixturevalue(fixture).report())
    page = parse(html)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", html)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_all_sections_and_numbers(thirty: Any) -> None:
    page = parse(render_report(thirty.report()))
    assert page.headings == [
        "Before and after",
        "Quality",
        "Latency",
        "Quality against speed",
        "Which blocks need which",
        "Why it works",
        "How much each sub-block matters",
        "Runs measured",
        "Does the order of a run's FFNs matter?",
        "Samples",
        "Recipe",
    ]
    text = " ".join(page.text.split())
    for shown in (
        "8 of 30",
        "6 → 2",
        "60 → 48",
        "1.19×",  # noqa: RUF001
        "17.1 → 18.7 → 19.2",
        "−27 %",  # noqa: RUF001
        "19.16 ± 0.23",
        "as many attentions, chosen by chance",
        "18.4–19.4 ms",  # noqa: RUF001
        "134.5M",
        "It lies on the Seine.",
        "max_width: 8192",
        "ffn-fusion 0.1.0",
        "two cores of a server CPU",
    ):
        assert shown in text


def test_chosen_runs_are_marked(thirty: Any) -> None:
    html = render_report(thirty.report())
    marked = re.findall(r'<tr class="marked">\s*<td>([^<]*)</td>\s*<td>([^<]*)</td>\s*<td>yes', html)
    assert set(marked) == {("5-8", "5-7"), ("17-20", "17-19")}


def test_sections_without_data_are_left_out(small: Any) -> None:
    nothing: dict[str, object] = {"evidence": None, "quality": None, "latency": None, "recipe_yaml": None}
    bare = small.report(**nothing, revision=None, versions={}, costs={}, samples=[], notes=[])
    page = parse(render_report(bare))
    assert page.headings == ["Before and after"]
    assert "revision" not in page.text
    assert "Latency" not in parse(render_report(small.report(latency=None))).headings


def test_other_machines_are_modelled_and_said_so(small: Any) -> None:
    machine = find_machine("h100")
    spec = read_spec(llama_config())
    found = [{name: predict(machine, spec, Setting(2, 1, 64, 8)) for name in ("parent", "pruned", "fused")}]
    page = parse(render_report(small.report(predictions=found)))
    assert "On other machines" in page.headings
    assert "Modelled, not measured" in page.text
    assert "2 x h100" in page.text
    assert "Crosses on dashed lines aren't measured" in page.text
    without = parse(render_report(small.report()))
    assert "On other machines" not in without.headings
    assert "odelled" not in without.text
    alone = parse(render_report(small.report(predictions=found, latency=None)))
    assert "On other machines" in alone.headings


def test_evidence_of_attentions_alone(small: Any) -> None:
    less = {"removals": small.evidence.importance, "runs": (), "matrices": {}, "geometry": (), "reverse_order": ()}
    page = parse(render_report(small.report(evidence=small.evidence.model_copy(update=less))))
    assert page.headings[-3:] == ["How much each attention matters", "Samples", "Recipe"]
    assert "Why it works" not in page.headings
    assert "Which blocks need which" not in page.headings
    assert "without one FFN" not in page.text
    nothing = small.evidence.model_copy(update=less | {"removals": ()})
    assert "matters" not in " ".join(parse(render_report(small.report(evidence=nothing))).headings)


def test_median_and_95th_percentile_are_there_for_who_asks(small: Any) -> None:
    html = render_report(small.report())
    hidden = "".join(re.findall(r"<details>.*?</details>", html, re.DOTALL))
    for title in ("whole blocks, median", "attentions alone, 95th percentile", "FFNs alone, 95th percentile"):
        assert f'aria-label="heat map: {title}"' in hidden
    assert 'aria-label="heat map: whole blocks"' not in hidden
    means = {name: m for name, m in small.evidence.matrices.items() if name.endswith(".mean")}
    html = render_report(small.report(evidence=small.evidence.model_copy(update={"matrices": means})))
    assert 'aria-label="heat map: whole blocks"' in html
    assert "median over tokens" not in html


def test_every_figure_says_what_it_shows(thirty: Any) -> None:
    html = render_report(thirty.report())
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == 8
    assert all(figure.count("<figcaption>") == 1 for figure in figures)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)
    measured = [caption for caption in captions if "65,536 tokens of calibration.txt in windows of 512" in caption]
    assert [re.findall(r"per token, then the (\S+)", caption) for caption in measured] == [
        ["mean"], ["median"], ["95th"], ["mean"], ["mean"], ["mean"]
    ]  # fmt: skip


def test_reverse_order_and_every_part_as_tables(thirty: Any) -> None:
    text = " ".join(parse(render_report(thirty.report())).text.split())
    test = thirty.evidence.reverse_order[0]
    row = [f"{damage.kl:.4f} ± {damage.kl_error:.4f}" for damage in (test.in_order, test.reversed, test.fused)]
    assert " ".join(["5-7", *row]) in text
    for gone in ("attention", "FFN", "whole block"):
        assert f"without one {gone}: all 30 blocks as a table" in text


def test_the_childs_geometry_is_drawn_over_the_parents(small: Any) -> None:
    child = [(float(row.block), row) for row in small.evidence.geometry]
    assert "the child's block" not in render_report(small.report())
    assert "the child's block" in render_report(small.report(child_geometry=child))


def test_repaired_places_are_drawn_and_listed(small: Any) -> None:
    assert "Repair</h2>" not in render_report(small.report())
    row = {"block": 2, "parent_last": 3, "why": "fused", "part": "ffn", "width": 96, "lambda": 0.1}
    kept = {**row, "block": 3, "parent_last": 4, "part": "attention", "lambda": None, "residual": None}
    places = [
        {**row, "held_out_error": 0.45, "residual": 2e-7, "reason": None},
        {**kept, "held_out_error": 1.0, "reason": "no gain on held-out tokens"},
    ]
    html = render_report(small.report(repairs={"calibration": {"tokens": 24_576}, "places": places}))
    for text in ("Repair</h2>", "24,576 tokens", "45.0%", "kept: no gain on held-out tokens", "error left at every"):
        assert text in html


def test_engines_and_why_they_do_not_load_it(small: Any) -> None:
    def bad(block: int) -> Problem:
        return Problem("vllm", block, "first-attention", "begins in the first attention", fixable=True)

    checks = (EngineCheck("vllm", (bad(0), bad(1))), EngineCheck("mlx", ()), EngineCheck("transformers", ()))
    page = parse(render_report(small.report(engines=checks)))
    assert "Engines" in page.headings
    text = " ".join(re.sub("<[^>]*>", " ", render_report(small.report(engines=checks))).split())
    assert "vllm loads after --fix 0-1 begins in the first attention mlx loads transformers loads" in text
    assert "Engines" not in parse(render_report(small.report())).headings
    assert engines_line(checks) == "loads in mlx, transformers; after check --fix in vllm"
    stuck = EngineCheck("sglang", (Problem("sglang", None, "activation", "refuses it", fixable=False),))
    assert engines_line([stuck]) == "not in sglang"
    assert engines_grid([stuck]).texts == [("sglang", "cannot", "", "refuses it (can't be rewritten)")]


def test_what_others_wrote_is_escaped(small: Any) -> None:
    text = small.quality.texts[0]
    scores = {**text.scores, HOSTILE: text.scores["fused"]}
    control = small.quality.controls[0].model_copy(update={"name": HOSTILE, "meaning": HOSTILE})
    quality = small.quality.model_copy(
        update={
            "texts": (text.model_copy(update={"text": HOSTILE, "scores": scores}),),
            "controls": (control,),
        }
    )
    latency = small.latency.model_copy(update={"machine": HOSTILE, "engine": HOSTILE})
    calibration = small.evidence.calibration.model_copy(update={"texts": (HOSTILE,)})
    evidence = small.evidence.model_copy(update={"calibration": calibration})
    html = render_report(
        small.report(
            title=HOSTILE,
            model_name=HOSTILE,
            revision=HOSTILE,
            quality=quality,
            latency=latency,
            evidence=evidence,
            recipe_yaml=HOSTILE,
            versions={HOSTILE: HOSTILE},
            samples=[(HOSTILE,) * 3],
            notes=[HOSTILE],
            costs={HOSTILE: (1.0, 2.0)},
        )
    )
    assert "<script" not in html
    assert "49" not in re.findall(r"'&amp;(.{2})", html)  # not a template either
    assert "&lt;script&gt;alert(1)" in html
    parse(html)


def test_same_data_same_bytes(small: Any, drawn: dict[bytes, str], tmp_path: Path) -> None:
    drawn.clear()
    write_report(tmp_path / "a.html", small.report())
    assert drawn
    drawn.clear()
    write_report(tmp_path / "b.html", small.report())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_no_two_elements_share_an_id(thirty: Any) -> None:
    ids = [value for _, name, value in parse(render_report(thirty.report())).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_where_it_cannot_be_written(small: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no-such-folder"):
        write_report(tmp_path / "no-such-folder" / "report.html", small.report())


def test_without_jinja_one_line_says_what_to_install(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError) as caught:
        render_report(small.report())
    assert caught.value.hint == "pip install 'ffn-fusion[report]'"
