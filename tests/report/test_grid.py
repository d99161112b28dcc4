"""A table of typed values: its text, its groups, and the forms it is drawn in."""

from __future__ import annotations

import pytest

from ffn_fusion.report.formats import NOTHING, Measured, Span, byte_count, kl, perplexity, seconds, share
from ffn_fusion.report.grid import MODEL, Column, Grid, kl_column, markdown, words

GRID = Grid.of(
    [("a | text", "parent", None, 3), ("a | text", "fused", Measured(0.25, 0.01), 4), ("b", "parent", 1.5, 4096)],
    (words("text"), lambda row: row[0]),
    (MODEL, lambda row: row[1]),
    (kl_column(), lambda row: row[2]),
    (Column("steps"), lambda row: row[3]),
    (Column("never", optional=True), lambda row: None),
    tone=lambda row: "marked" if row[1] == "fused" else "",
    notes=["All of <it> made up.", ""],
    grouped=True,
)


def test_values_become_text_by_column() -> None:
    assert GRID.headings == ("text", "model", "KL (nats/token)", "steps")
    assert GRID.texts == [
        ("a | text", "parent", NOTHING, "3"),
        ("", "fused", "0.2500 ± 0.0100", "4"),
        ("b", "parent", "1.500", "4,096"),
    ]
    assert [row.tone for row in GRID.rows] == ["", "marked", ""]


def test_split_by_group() -> None:
    first, second = GRID.split()
    assert (first.title, [row.tone for row in first.rows]) == ("a | text", ["", "marked"])
    assert second.texts == [("parent", "1.500", "4,096")]


def test_transposed() -> None:
    turned = GRID.split()[0].transposed()
    assert turned.headings == ("model", "parent", "fused")
    assert turned.texts == [("KL (nats/token)", NOTHING, "0.2500 ± 0.0100"), ("steps", "3", "4")]


def test_markdown() -> None:
    assert markdown(GRID).splitlines() == [
        "All of &lt;it&gt; made up.",
        "",
        "| text | model | KL (nats/token) | steps |",
        "| --- | --- | ---: | ---: |",
        f"| a \\| text | parent | {NOTHING} | 3 |",
        "|  | fused | 0.2500 ± 0.0100 | 4 |",
        "| b | parent | 1.500 | 4,096 |",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (kl(0.03456), "0.0346"),
        (kl(Measured(1.25, 0.5)), "1.250 ± 0.500"),
        (perplexity(Measured(19.157, 0.23)), "19.16 ± 0.23"),
        (perplexity(Measured(238.69, 102.09)), "238.7 ± 102.1"),
        (perplexity(Measured(1_738_476.8, 1_504_607.4)), "1.7M ± 1.5M"),
        (share(Measured(0.812, 0.004)), "81.2 ± 0.4"),
        (seconds(0.0186), "18.6 ms"),
        (seconds(Span(0.00184, 0.0194)), "1.8\N{EN DASH}19.4 ms"),
        (byte_count(23_040), "23.0 kB"),
    ],
)
def test_figures_of_merit(text: str, shown: str) -> None:
    assert text == shown
