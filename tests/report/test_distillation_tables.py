"""Stages as text: all of them, of earlier distillations too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ffn_fusion.report.formats import NOTHING
from ffn_fusion.report.html import render_report
from ffn_fusion.report.training_grids import objective_words, stages_grid, trainings

OBJECTIVE = {"kl": 1.0, "cosine": 1.0, "lm": 0.0, "direction": "forward", "temperature": 1.0}


def stage(tokens: int, context: int, **changes: Any) -> dict[str, Any]:
    rows = [{"step": s, "loss": 3.0 / s, "divergence": 1.0 / s, "cosine": 2.0 / s, "lm": 0.0} for s in (1, 2, 4)]
    gains = [
        {"text": name, "tokens": 64, "kl": {"before": kl, "after": kl / 2}, "perplexity": {}}
        for name, kl in (("a", 0.5), ("b", 1.5))
    ]
    settings = {"batch": 8, "learning_rate": 2e-4, "trained": "all", "objective": OBJECTIVE}
    return {
        "tokens": tokens,
        "context": context,
        "steps": 4,
        "settings": settings,
        "history": rows,
        "gains": gains,
    } | changes


def record() -> dict[str, Any]:
    """A child that was distilled once, and then in two stages."""
    earlier = {key: value for key, value in stage(100, 64).items() if key not in ("history", "gains")}
    stages = [stage(4096, 256), stage(1024, 1024)]
    return {"tokens": 5120, "steps": 8, "stages": stages, "before": {**earlier, "before": None}}


def test_every_training_oldest_first() -> None:
    assert [training["tokens"] for training in trainings(record())] == [100, 4096, 1024]
    assert len(trainings(stage(8, 8))) == 1
    grid = stages_grid(record())
    assert [row[0] for row in grid.texts] == ["1", "2", "3"]
    assert grid.texts[0][-3:] == (NOTHING, NOTHING, NOTHING)
    assert grid.texts[1] == (
        "2", "KL + cosine", "4,096", "256", "4 × 8", "0.0002", "3 → 0.75", "1.000", "0.5000",  # noqa: RUF001
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "KL + cosine"),
        ({"kl": 0.5, "direction": "reverse", "cosine": 0, "lm": 0.1}, "0.5 reverse KL + 0.1 LM"),
        ({"direction": "js", "cosine": 0, "temperature": 2.0}, "JS, temperature 2"),
        ({"kl": 0, "temperature": 2.0}, "cosine"),
    ],
)
def test_an_objective_in_words(changes: dict[str, Any], words: str) -> None:
    assert objective_words({**OBJECTIVE, **changes}) == words


def test_the_report_draws_the_loss_through_all_stages(small: Any) -> None:
    assert "Distillation</h2>" not in render_report(small.report(evidence=None))
    html = render_report(small.report(evidence=None, distillation=record()))
    assert "5,120 tokens" in html
    (figure,) = re.findall(r'<svg[^>]*aria-label="chart: the distillation.*?</svg>', html, re.DOTALL)
    for words in ("stage 1: context 256", "stage 2: context 1,024", "divergence of distributions", "cosine distance"):
        assert words in figure
    assert "language-model loss" not in figure
    bare = {**record(), "stages": [stage(8, 8, history=[])]}
    html = render_report(small.report(evidence=None, distillation=bare))
    assert "Distillation</h2>" in html
    assert "chart: the distillation" not in html
