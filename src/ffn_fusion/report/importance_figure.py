"""What dropping each sub-block alone does, as bars over the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.report import palette
from ffn_fusion.report.block_axis import block_axis, plain_log
from ffn_fusion.report.evidence_grids import ONE_OF, measured_parts
from ffn_fusion.report.svg import render

from matplotlib.patches import Patch  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.analysis.evidence import Evidence, Part, Removal


def importance_bars(evidence: Evidence, blueprint: Blueprint) -> str:
    """KL from the parent when each sub-block alone is dropped; one panel a part, all on one scale.

    The attentions that the blueprint drops and the FFNs that it fuses stand out.
    """
    parts = measured_parts(evidence)

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(parts), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, part in zip(panels, parts, strict=True):
            removals = [row for row in evidence.removals if row.part == part]
            _bars(axes, removals, *_looks(part, blueprint))
            block_axis(axes, len(evidence.parent.blocks), label=axes is panels[-1])
            axes.grid(True, axis="y")
            if len(parts) > 1:
                axes.set_title(f"without {ONE_OF[part]}", fontsize=9)
        plain_log(panels[0])  # they share the scale
        figure.supylabel("KL from parent\n(nats a token, log)", fontsize=9)

    what = ", ".join(ONE_OF[part] for part in parts)
    return render(
        draw, 10.6, 1.0 + 1.7 * len(parts), f"bars: damage of dropping each sub-block alone, by block: {what}"
    )


def _looks(part: Part, blueprint: Blueprint) -> tuple[tuple[str, str], tuple[str, str], set[int]]:
    """(colour, label) of the usual bar and of the one that stands out, and the blocks where it does."""
    fused = {i for first, last in blueprint.runs for i in range(first, last + 1)}
    if part == "attention":
        return (palette.ATTENTION, "kept"), (palette.DROPPED, "dropped"), set(blueprint.dropped_attentions)
    if part == "ffn":
        return (palette.FFN, "on its own"), (palette.FUSED, "fused"), fused
    return (palette.PARENT, ""), (palette.PARENT, ""), set()


def _bars(
    axes: Any, removals: list[Removal], usual: tuple[str, str], special: tuple[str, str], standing_out: set[int]
) -> None:
    blocks = [row.block for row in removals]
    kl = np.maximum([row.damage.kl for row in removals], 1e-7)
    errors = np.array([row.damage.kl_error for row in removals])
    down = np.minimum(errors, kl * 0.9)  # a log axis has no place for what reaches zero
    axes.bar(blocks, kl, color=[(special if i in standing_out else usual)[0] for i in blocks], width=0.8)
    axes.errorbar(blocks, kl, [down, errors], fmt="none", ecolor=palette.INK, elinewidth=0.9)
    axes.set_yscale("log")
    if usual[1]:
        handles = [Patch(color=colour, label=label) for colour, label in (usual, special)]
        axes.legend(handles=handles, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
