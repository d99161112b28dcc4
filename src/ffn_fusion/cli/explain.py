"""``ffn-fusion explain``: why a block was kept, dropped or fused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say

if TYPE_CHECKING:
    from ffn_fusion.analysis.explanation import Explanation


def explain(
    child: Annotated[
        Path, typer.Argument(help="A child, its run's folder OUT.run, or a blueprint file.", metavar="OUT")
    ],
    layer: Annotated[int, typer.Option(help="Block of the parent, from 0.", min=0)],
    evidence: Annotated[
        Path | None, typer.Option(help="Folder that `analyze` wrote; not needed where OUT.run has it.")
    ] = None,
    around: Annotated[int, typer.Option(help="How many neighbours to show on each side.", min=0)] = 2,
    as_json: JsonFlag = False,
) -> None:
    """Say why a block's attention and FFN were kept, dropped or fused, with numbers against its neighbours'."""
    from ffn_fusion.analysis.explain import explain as find
    from ffn_fusion.pipeline.decision import find_decision
    from ffn_fusion.report.explanation_grids import explanation_grids

    decision = find_decision(child, evidence)
    found = find(
        decision.blueprint,
        decision.evidence,
        layer,
        budget=decision.plan,
        by_person=decision.plan is not None and decision.plan.explicit,
        allows=decision.allows,
        around=around,
    )
    if as_json:
        emit(json.loads(found.model_dump_json()))  # the standard error of a single window is NaN, which JSON has not
        return
    say(f"block {found.block} of {found.parent} (0 to {found.blocks - 1})", "", err=False)
    say(*(decision.words for decision in found.decisions), chosen_line(found), "", err=False)
    say(*explanation_grids(found), err=False)


def chosen_line(found: Explanation) -> str:
    """Who chose the child, and its damage by the additive count."""
    drop, steps = found.size
    size = f"{drop} attention{'s' * (drop != 1)} dropped and {steps} FFN step{'s' * (steps != 1)} fused away"
    costs = f"summed damage {found.damage:.4f}" if found.damage is not None else "not all of it was measured as it is"
    best = f"the exact programme reaches {found.least:.4f}" if found.least is not None else ""
    if found.chosen_by == "programme":
        return f"Chosen by the exact programme: {size} with the least summed damage, {found.damage:.4f}."
    who = "A person chose it" if found.chosen_by == "person" else "Not the exact programme's choice"
    return "; ".join(filter(None, (f"{who}: {size}, {costs}", best))) + "."
