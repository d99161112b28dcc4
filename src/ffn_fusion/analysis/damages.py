"""Divergences found in a sweep as the damages and rows of evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ffn_fusion.analysis.candidates import repaired_name, side_by_side_name
from ffn_fusion.analysis.evidence import PARTS, Damage, MeasuredSideBySide, Removal
from ffn_fusion.analysis.observe import removed
from ffn_fusion.blockwise.head import Divergence, standard_error
from ffn_fusion.blockwise.sweep import PARENT


def removals_of(damages: Mapping[str, Damage], blocks: int) -> tuple[Removal, ...]:
    """The sub-blocks that were removed alone and scored, one row each."""
    return tuple(
        Removal(
            part=part,
            block=i,
            damage=damages[removed(part, i)],
            repaired=damages.get(repaired_name(removed(part, i))),
        )
        for part in PARTS
        for i in range(blocks)
        if removed(part, i) in damages
    )


def measured_side_by_side(
    damages: Mapping[str, Damage], runs: Iterable[tuple[int, int]]
) -> tuple[MeasuredSideBySide, ...]:
    """The runs of blocks that were put side by side, one row each."""
    return tuple(
        MeasuredSideBySide(
            first=first,
            last=last,
            damage=damages[side_by_side_name(first, last)],
            repaired=damages.get(repaired_name(side_by_side_name(first, last))),
        )
        for first, last in runs
    )


def damages_of(divergences: Mapping[str, Divergence]) -> dict[str, Damage]:
    parent_loss = float(divergences[PARENT].loss_N.mean())
    return {name: damage_of(values, parent_loss) for name, values in divergences.items() if name != PARENT}


def damage_of(values: Divergence, parent_loss: float) -> Damage:
    """Means over all windows, with the standard error of the KL."""
    return Damage(
        kl=float(values.kl_N.mean()),
        kl_error=standard_error(values.kl_N),
        loss_increase=float(values.loss_N.mean()) - parent_loss,
        agreement=float(values.agreement_N.mean()),
        hidden_distance=float(values.hidden_distance_N.mean()),
    )
