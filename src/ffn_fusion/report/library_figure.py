"""The map of a library: for every choice of every block, the error that is left and what the choice does alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.report.block_axis import block_axis
from ffn_fusion.report.formats import printable
from ffn_fusion.report.library_grids import in_order
from ffn_fusion.report.svg import render

from matplotlib.colors import LogNorm, Normalize  # isort: skip
from matplotlib.ticker import FuncFormatter  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.puzzle.store import StoredEntry
    from ffn_fusion.search.table import ScoreRow

_LEAST_KL = 1e-4  # nats a token: the end of the scale, far below what a plan would notice


def library_map(entries: Sequence[StoredEntry], scores: Sequence[ScoreRow], blocks: int) -> str:
    """A row for each choice, a column for each block; a run is shown at its first block.

    The panels: the error as surgery makes it, and as the entry is kept, both over the error of the same sub-blocks
    doing nothing; and the KL to the parent of the entry alone.
    """
    alone = {tuple(row.key): row.score for row in scores}
    groups = in_order(entries, scores)
    values: Mapping[str, Callable[[StoredEntry], float | None]] = {
        "error as surgery makes it, over that of removing it": lambda e: e.initial / e.removed if e.removed else None,
        "error as it is kept, over that of removing it": lambda e: e.error / e.removed if e.removed else None,
        "KL from parent, alone (nats a token, log)": lambda e: alone.get((e.first, e.last, e.part, e.choice)),
    }

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(values), sharex=True, squeeze=False)[:, 0]
        for axes, (title, value) in zip(panels, values.items(), strict=True):
            table = _table([group for _, group in groups], value, blocks)
            low, high = (_LEAST_KL, max(2 * _LEAST_KL, np.nanmax(table, initial=0.0))) if "log" in title else (0.0, 1.0)
            norm = LogNorm(low, high, clip=True) if "log" in title else Normalize(low, high, clip=True)
            image = axes.imshow(np.ma.masked_invalid(table), aspect="auto", cmap="viridis", norm=norm)
            axes.set_yticks(range(len(groups)), [printable(_name(*key)) for key, _ in groups], fontsize=7)
            axes.set_title(title)
            block_axis(axes, blocks, label=axes is panels[-1])
            bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            bar.ax.minorticks_off()

    height = 0.8 + len(values) * (0.45 + 0.19 * max(1, len(groups)))
    return render(draw, 10.6, height, "heat maps: errors and scores of a library's choices, by block")


def _name(part: str, choice: str) -> str:
    return choice if part == "block" else f"{'FFN' if part == 'ffn' else part} {choice}"


def _table(
    groups: Sequence[Sequence[StoredEntry]], value: Callable[[StoredEntry], float | None], blocks: int
) -> npt.NDArray[np.float64]:
    table = np.full((len(groups), blocks), np.nan)
    for row, group in enumerate(groups):
        for entry in group:
            found = value(entry)
            if found is not None:
                table[row, entry.first] = np.nanmin([table[row, entry.first], found])
    return table
