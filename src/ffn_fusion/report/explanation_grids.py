"""Why a block was kept, dropped or fused (``analysis.explain``), as tables of numbers beside its neighbours'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.report.formats import NOTHING, Measured, kl
from ffn_fusion.report.grid import Column, Grid, kl_column, words
from ffn_fusion.report.quality_grids import SIDE_BY_SIDE, merged_runs

if TYPE_CHECKING:  # numpy stays out of --help
    from ffn_fusion.analysis.evidence import Part
    from ffn_fusion.analysis.explanation import Counterfactual, Explanation, Instead, Link, Neighbour

_NAMES: dict[Part, str] = {"attention": "attention", "block": "block", "ffn": "FFN"}


def explanation_grids(found: Explanation) -> list[Grid]:
    """Everything that was found, table by table; what wasn't measured has none."""
    grids = [_neighbours(found), _geometry(found), _choices(found), _dependencies(found), _counterfactuals(found)]
    return [grid for grid in grids if grid.rows]


def _neighbours(found: Explanation) -> Grid:
    """The block among its neighbours: what became of each, and what dropping each alone does."""
    of = ", of repaired changes" if found.repaired else ""
    return Grid.of(
        found.neighbours,
        (words("block"), lambda row: row.block),
        (words("attention"), lambda row: row.attention),
        (words("FFN"), lambda row: row.ffn),
        *(column for part in _NAMES for column in _alone(part)),
        tone=lambda row: "marked" if row.block == found.block else "",
        title="The block and its neighbours",
        notes=[f"KL to the parent when the part alone is dropped{of}; rank 1 does the least of the whole model."],
    )


def _alone(part: Part) -> Sequence[tuple[Column, Callable[[Neighbour], object]]]:
    def damage(row: Neighbour) -> Measured | None:
        alone = row.alone.get(part)
        return Measured(alone.kl, alone.kl_error) if alone else None

    def rank(row: Neighbour) -> int | None:
        return row.alone[part].rank if part in row.alone else None

    return (kl_column(f"KL without {_NAMES[part]}", optional=True), damage), (Column("rank", optional=True), rank)


def _geometry(found: Explanation) -> Grid:
    """How blocks turn the state (arXiv 2503.18908, "why it works")."""
    rows = [row for neighbour in found.neighbours for row in neighbour.geometry]
    whole = [row for row in rows if row.part == "block"]
    return Grid.of(
        whole or rows,
        (words("block"), lambda row: row.block),
        (words("part"), lambda row: _NAMES[row.part]),
        (Column("turn", kl), lambda row: row.turn),
        (Column("direction", kl), lambda row: row.direction),
        (Column("size", kl), lambda row: row.size),
        title="Geometry",
        notes=[
            "X is the state and h what the block adds. Turn: cosine distance of X to X + h; direction: of h to X; "
            "size: |h| / |X|."
        ],
    )


def _choices(found: Explanation) -> Grid:
    """The measured changes that touch the block: what was chosen, then the cheapest that weren't."""
    return Grid.of(
        found.choices,
        (words("attentions dropped"), lambda choice: format_blocks(choice.dropped)),
        (words("FFNs fused"), lambda choice: format_runs(choice.runs)),
        (SIDE_BY_SIDE, lambda choice: merged_runs(choice.merged)),
        (words(""), lambda choice: "chosen" if choice.chosen else "" if choice.allowed else "above max-damage"),
        (kl_column(), lambda choice: Measured(choice.damage, choice.damage_error)),
        (Column("steps saved"), lambda choice: choice.steps),
        (kl_column("KL per step"), lambda choice: choice.per_step),
        title="Measured changes that touch the block",
    )


def _dependencies(found: Explanation) -> Grid:
    """What the block depends on most, and what depends on it most."""
    return Grid.of(
        found.dependencies,
        (words("part"), lambda row: _NAMES[row.part]),
        (words("depends most on"), lambda row: _links(row.depends_on)),
        (words("most needed by"), lambda row: _links(row.needed_by)),
        title="Dependency",
        notes=["In brackets: cosine distance between what a block adds with and without the other one."],
    )


def _links(links: Sequence[Link]) -> str:
    return ", ".join(f"{link.block} ({kl(link.distance)})" for link in links) or NOTHING


_INSTEAD: dict[Instead, str] = {
    "kept": "keep {}",
    "dropped": "drop {}",
    "unfused": "leave {} unfused",
    "fused": "fuse {}",
}


def _counterfactuals(found: Explanation) -> Grid:
    """What another fate of the block would have cost at the same size."""

    def what(other: Counterfactual) -> str:
        return _INSTEAD[other.instead].format(f"{_NAMES[other.part]} {found.block}")

    impossible = any(other.damage is None for other in found.counterfactuals)
    return Grid.of(
        found.counterfactuals,
        (words("instead"), what),
        (kl_column("summed KL"), lambda other: other.damage),
        (Column("more", "{:+.4f}".format), lambda other: other.more),
        (words("attentions dropped"), lambda other: None if other.damage is None else format_blocks(other.dropped)),
        (words("FFNs fused"), lambda other: None if other.damage is None else format_runs(other.runs)),
        (SIDE_BY_SIDE, lambda other: merged_runs(other.merged)),
        title="Other choices at the same size",
        notes=[
            "The best child of the same size in which the block had another fate, by the exact programme.",
            f"{NOTHING}: impossible with what was measured." if impossible else "",
        ],
    )
