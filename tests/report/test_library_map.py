"""The map and the table of a library."""

from __future__ import annotations

from ffn_fusion.blueprint import Block, KeptSubBlock, NoSubBlock
from ffn_fusion.puzzle.store import StoredEntry
from ffn_fusion.report.library_figure import library_map
from ffn_fusion.report.library_grids import library_grid
from ffn_fusion.report.terminal import rich_table
from ffn_fusion.search.table import ScoreRow


def stored(block: int, choice: str, error: float, solved: float | None = None) -> StoredEntry:
    made = Block(parent_blocks=(block, block), attention=NoSubBlock(), ffn=KeptSubBlock(source=block))
    return StoredEntry(
        first=block,
        last=block,
        part="attention",
        choice=choice,
        blocks=(made,),
        removed=1.0,
        initial=error,
        solved=solved,
    )


def row(block: int, choice: str, score: float) -> ScoreRow:
    return ScoreRow(first_block=block, last_block=block, part="attention", choice=choice, score=score)


ENTRIES = [
    stored(0, "none", 1.0),
    stored(2, "none", 1.0),
    stored(0, "<b> $x$", 0.5, 0.25),
    stored(2, "<b> $x$", 0.7, 0.35),
]
SCORES = [row(0, "none", 0.4), row(2, "none", 0.6), row(0, "<b> $x$", 0.1)]


def test_medians_over_the_blocks() -> None:
    grid = library_grid(ENTRIES, SCORES)
    assert grid.headings == ("part", "choice", "entries", "removed", "as made", "solved", "KL alone")
    assert [grid.cells(row)[1:] for row in grid.rows] == [
        ("<b> $x$", "2", "1.0000", "0.6000", "0.3000", "0.1000"),
        ("none", "2", "1.0000", "1.0000", "–", "0.5000"),  # noqa: RUF001
    ]
    assert rich_table(grid).row_count == 2


def test_the_map_names_choices_and_is_the_same_every_time() -> None:
    svg = library_map(ENTRIES, SCORES, 4)
    assert svg == library_map(ENTRIES, SCORES, 4)
    assert "attention &lt;b&gt; $x$" in svg
    for title in ("error as surgery makes it", "error as it is kept", "KL from parent, alone"):
        assert title in svg
    assert "mathdefault" not in svg
