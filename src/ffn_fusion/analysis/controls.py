"""Controls: children of the same size chosen without looking at runs, to show what the evidence is worth. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ffn_fusion.analysis.evidence import AttentionImportance
from ffn_fusion.blueprint import Blueprint, apply
from ffn_fusion.blueprint.blocks import FusionNorm


@dataclass(frozen=True)
class ControlPlan:
    name: str
    meaning: str
    blueprint: Blueprint


def control_plans(
    blueprint: Blueprint, importance: Sequence[AttentionImportance], norm: FusionNorm = "own"
) -> list[ControlPlan]:
    """Naive choices with as many attentions dropped and as many FFN steps fused away as ``blueprint``.

    * middle: the consecutive attentions in the middle of the model, and one run over their FFNs.
    * least important: the attentions with the least replace-1 damage, and runs wherever they lie side by side.
    """
    drop = len(blueprint.dropped_attentions)
    steps = sum(len(block.ffn.sources) - 1 for block in blueprint.blocks if block.ffn.kind == "fused")
    if not drop or not steps:
        return []
    with_attention = [i for i, block in enumerate(blueprint.parent.blocks) if block.attention]
    start = (len(with_attention) - drop) // 2
    cheapest = [row.block for row in sorted(importance, key=lambda row: row.damage.kl)[:drop]]
    plans = []
    for name, meaning, dropped in (
        (
            "middle",
            f"the {drop} attentions in the middle of the model dropped",
            with_attention[start : start + drop],
        ),
        (
            "least important",
            f"the {drop} attentions with the least replace-1 damage dropped",
            sorted(cheapest),
        ),
    ):
        runs = _runs(blueprint, dropped, steps)
        if sum(last - first for first, last in runs) == steps:
            identity = Blueprint.identity(blueprint.parent)
            plans.append(
                ControlPlan(
                    name,
                    f"{meaning}, as many FFNs fused, from the front",
                    apply(identity, dropped, runs, norm=norm),
                )
            )
    return plans


def _runs(blueprint: Blueprint, dropped: Sequence[int], steps: int) -> list[tuple[int, int]]:
    """Runs that fuse away ``steps`` FFN steps over the attention-free blocks, filled from the front.

    As the paper fuses, with the last FFN left out, if that is enough; else with it, else headed by the block before.
    """
    stretches = _free_stretches(blueprint, set(dropped))
    for head, last in ((0, -1), (0, 0), (-1, 0)):
        runs: list[tuple[int, int]] = []
        missing = steps
        for first, end in stretches:
            begin = max(first + head, 0)
            take = min(end + last - begin, missing)
            if take > 0:
                runs.append((begin, begin + take))
                missing -= take
        if not missing:
            return runs
    return []


def _free_stretches(blueprint: Blueprint, dropped: set[int]) -> list[tuple[int, int]]:
    """Maximal stretches of blocks without attention and with a gated FFN."""
    found: list[tuple[int, int]] = []
    for i, block in enumerate(blueprint.parent.blocks):
        if (block.attention is None or i in dropped) and block.ffn == "gated":
            if found and found[-1][1] == i - 1:
                found[-1] = (found[-1][0], i)
            else:
                found.append((i, i))
    return found
