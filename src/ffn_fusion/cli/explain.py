"""``ffn-fusion explain``: why a block was kept, dropped or fused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.cli.console import JsonFlag, emit, say

if TYPE_CHECKING:
    from ffn_fusion.analysis.explanation import Counterfactual, Explanation, Instead


def explain(
    child: Annotated[
        Path, typer.Argument(help="A child, its run's folder OUT.run, or a blueprint file.", metavar="OUT")
    ],
    layer: Annotated[int, typer.Option(help="Block of the parent, from 0.", min=0)],
    evidence: Annotated[
        Path | None, typer.Option(help="Folder that `analyze` wrote; not needed where OUT.run has it.")
    ] = None,
    around: Annotated[int, typer.Option(help="How many neighbours on each side.", min=0)] = 2,
    as_json: JsonFlag = False,
) -> None:
    """Say why a block's attention and FFN were kept, dropped or fused, with numbers against its neighbours'."""
    from ffn_fusion.analysis.explain import explain as find
    from ffn_fusion.pipeline.decision import find_decision

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
        emit(json.loads(found.model_dump_json()))  # an error of one window is NaN, which JSON has not
        return
    _show(found)


def _show(found: Explanation) -> None:
    from ffn_fusion.cli import tables

    of = ", of repaired changes" if found.repaired else ""
    say(
        f"block {found.block} of {found.parent} (0 to {found.blocks - 1}); damage and KL in nats a token{of}", err=False
    )
    say("", *(decision.words for decision in found.decisions), chosen_line(found), "", err=False)
    say("its neighbours (rank 1: dropping it does the least of the whole model):", err=False)
    say(tables.neighbours_table(found), err=False)
    geometry = tables.geometry_table(found)
    if geometry:
        say("geometry (X: the state, h: what it adds; cosine distances (X, X + h) and (h, X), |h| / |X|):", err=False)
        say(geometry, err=False)
    if found.choices:
        say("measured changes that touch it:", tables.choices_table(found), err=False)
    if found.dependencies:
        say("dependency (cosine distance between a contribution with and without the other's):", err=False)
        say(tables.dependency_table(found.dependencies), err=False)
    say("at the same size, by the exact programme:", *counterfactual_lines(found), err=False)


def chosen_line(found: Explanation) -> str:
    """Who chose the child, and what it costs by the additive count."""
    drop, steps = found.size
    size = f"{drop} attention{'s' * (drop != 1)} dropped and {steps} FFN step{'s' * (steps != 1)} fused away"
    costs = f"summed damage {found.damage:.4f}" if found.damage is not None else "not all of it was measured as it is"
    best = f"the exact programme reaches {found.least:.4f}" if found.least is not None else ""
    if found.chosen_by == "programme":
        return f"Chosen by the exact programme: {size} with the least summed damage, {found.damage:.4f}."
    who = "A person chose it" if found.chosen_by == "person" else "Not the exact programme's choice"
    return "; ".join(filter(None, (f"{who}: {size}, {costs}", best))) + "."


_WORDS: dict[Instead, str] = {
    "kept": "keeping {}",
    "dropped": "dropping {}",
    "unfused": "leaving {} unfused",
    "fused": "fusing {}",
}


def counterfactual_lines(found: Explanation) -> Iterator[str]:
    """What another fate would have cost."""
    for other in found.counterfactuals:
        name = f"{'FFN' if other.part == 'ffn' else other.part} {found.block}"
        yield f"  {_WORDS[other.instead].format(name)} {_cost(other)}"
        if other.damage is not None:
            yield f"    (attentions dropped: {format_blocks(other.dropped)}; FFNs fused: {format_runs(other.runs)})"


def _cost(other: Counterfactual) -> str:
    if other.damage is None:
        return "is impossible with what was measured"
    if other.more is None:
        return f"would do {other.damage:.4f} in all"
    return f"would have cost {abs(other.more):.4f} {'less' if other.more < 0 else 'more'}: {other.damage:.4f} in all"
