"""Tables of a library: what making it takes, and what each choice came to, kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, Any

from ffn_fusion.report.estimate_grids import DISK, MEMORY, TIME, TOKENS, each_of
from ffn_fusion.report.formats import tera
from ffn_fusion.report.grid import Column, Grid, words
from ffn_fusion.units import gb

if TYPE_CHECKING:
    from ffn_fusion.analysis.passes import PassEstimate
    from ffn_fusion.puzzle.estimate import LibraryEstimate
    from ffn_fusion.puzzle.store import StoredEntry
    from ffn_fusion.search.table import ScoreRow

_PARTS = {"attention": "attentions", "ffn": "FFNs", "block": "of several sub-blocks"}


def library_estimate_grid(making: LibraryEstimate, scoring: PassEstimate) -> Grid:
    """What making a library takes, and scoring its entries."""
    entries = ", ".join(f"{count:,} {_PARTS[part]}" for part, count in making.entries.items())
    left_out = [f"Left out: {what} ({reason})." for what, reason in making.left_out.items()]
    schedule, tokens = scoring.schedule, scoring.windows * scoring.work.context
    flops = scoring.block_flops + scoring.windows * scoring.work.head_flops
    made = (making.tokens, making.flops, making.library_bytes, making.disk_bytes, making.peak_memory, making.seconds)
    scored = (tokens, flops, None, schedule.disk_bytes, schedule.peak_memory, scoring.seconds)
    columns = (TOKENS, Column("TFLOPs", tera), Column("weights kept", gb), DISK, MEMORY, TIME)
    return Grid.of(
        [("making", *made), ("scoring", *scored)],
        (words("a library"), itemgetter(0)),
        *((column, itemgetter(k)) for k, column in enumerate(columns, 1)),
        notes=[f"{sum(making.entries.values()):,} entries: {entries}.", *left_out, each_of(making.processes)],
    ).transposed()


def library_json(making: LibraryEstimate, scoring: PassEstimate) -> dict[str, Any]:
    """The same for programs."""
    both = None if making.seconds is None or scoring.seconds is None else making.seconds + scoring.seconds
    return {
        **vars(making),
        "scoring_seconds": scoring.seconds,
        "scoring_tokens": scoring.windows * scoring.work.context,
        "all_seconds": both,
    }


Key = tuple[str, str]
"""A part and the word of a choice."""


def in_order(entries: Iterable[StoredEntry], scores: Iterable[ScoreRow]) -> list[tuple[Key, list[StoredEntry]]]:
    """The entries of each part and choice; within a part, those first that do the least alone."""
    groups: dict[Key, list[StoredEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.part, entry.choice), []).append(entry)
    known: dict[Key, list[float]] = {}
    for row in scores:
        known.setdefault((row.part, row.choice), []).append(row.score)
    order = {part: k for k, part in enumerate(_PARTS)}
    return sorted(groups.items(), key=lambda pair: (order[pair[0][0]], median(known.get(pair[0], [0.0]))))


def library_grid(entries: Sequence[StoredEntry], scores: Sequence[ScoreRow]) -> Grid:
    """The median over the blocks of what each choice left of the error, and of its score."""
    alone = {tuple(row.key): row.score for row in scores}

    def score(entry: StoredEntry) -> float | None:
        return alone.get((entry.first, entry.last, entry.part, entry.choice))

    def middle(value: Callable[[StoredEntry], float | None]) -> Callable[[Any], float | None]:
        def of(row: tuple[Key, list[StoredEntry]]) -> float | None:
            known = [found for entry in row[1] if (found := value(entry)) is not None]
            return median(known) if known else None

        return of

    def column(heading: str, optional: bool = False) -> Column:
        return Column(heading, "{:.4f}".format, optional=optional)

    return Grid.of(
        in_order(entries, scores),
        (words("part"), lambda row: {"ffn": "FFN"}.get(row[0][0], row[0][0])),
        (words("choice"), lambda row: row[0][1]),
        (Column("entries"), lambda row: len(row[1])),
        (column("removed"), middle(lambda entry: entry.removed)),
        (column("as made"), middle(lambda entry: entry.initial)),
        (column("solved", optional=True), middle(lambda entry: entry.solved)),
        (column("trained", optional=True), middle(lambda entry: entry.trained)),
        (column("KL alone", optional=True), middle(score)),
        title="Sub-blocks of the library, medians over the blocks",
        notes=[
            "Errors on held-out windows: |o_p - o_c|^2 / |o_p|^2 of the state after the sub-blocks, mean over tokens."
        ],
    )
