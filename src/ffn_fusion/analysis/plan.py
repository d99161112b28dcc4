"""From evidence and a budget to a blueprint. No torch: planning again never measures again."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from ffn_fusion.analysis.choices import choices_within
from ffn_fusion.analysis.cost_count import costs_of, counted_speedup, price_of, time_saved
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import loadable_choices, plan_problems
from ffn_fusion.analysis.programme import Frontier, least_that_saves
from ffn_fusion.analysis.settings import FUSE_TOLERANCE, PlanSettings
from ffn_fusion.analysis.widths import narrower
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import ChoiceTable, Selection, Size
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import model_tensors
from ffn_fusion.portability.rule import EngineCheck

_MORE = "allow more damage (--max-damage), or measure longer runs (analyze --max-run)"


@dataclass(frozen=True)
class Plan:
    """A blueprint and what it's expected to do: summed damage (KL, nats a token) and the counted speed-up.

    ``engines``: those that have to load the child, with what the parent brings along that `check --fix` has to fix.
    """

    blueprint: Blueprint
    selection: Selection
    counted_speedup: float
    engines: tuple[EngineCheck, ...] = ()


def plan(spec: ModelSpec, evidence: Evidence, budget: PlanSettings) -> Plan:
    """The plan of least measured damage within the budget.

    Raises:
        BlueprintError: the evidence is of another model, or no plan reaches the budget.
        CheckError: an engine of the budget can't load any child of this model.
    """
    if evidence.parent.blocks != spec.parent("").blocks:
        raise BlueprintError(f"the evidence is of {evidence.parent.name}, another model", "run `ffn-fusion analyze`")
    _check_measured(evidence, budget)
    plan_problems(spec, Blueprint.identity(evidence.parent), budget.for_engines)
    table = choices_within(evidence, budget, price_of(spec)).where(loadable_choices(spec, budget.for_engines))
    if budget.steps is not None:
        selection = _for_steps(table, budget.steps)
    elif budget.speedup is not None:
        selection = _for_speedup(spec, table, budget.speedup)
    elif budget.parameters is not None:
        selection = _for_parameters(spec, table, budget.parameters)
    else:
        selection = _for_count(evidence, table, budget)
    blueprint = selection.blueprint(evidence.parent)
    return Plan(blueprint, selection, counted_speedup(spec, blueprint))


def _check_measured(evidence: Evidence, budget: PlanSettings) -> None:
    """What the budget allows has to be in the evidence."""
    if budget.drop_ffn and not any(row.part == "ffn" for row in evidence.removals):
        raise BlueprintError(
            "FFNs may be dropped, but none was measured dropped alone",
            "run `ffn-fusion analyze --scores attention,ffn`",
        )
    there = {(row.block, row.width) for row in evidence.narrowed}
    for share in budget.narrow:
        widths = [(i, b.ffn_width, narrower(b.ffn_width, share)) for i, b in enumerate(evidence.parent.blocks)]
        if not any((i, width) in there or width == whole for i, whole, width in widths if whole):
            shares = ",".join(f"{s:g}" for s in budget.narrow)
            raise BlueprintError(
                f"FFNs may be narrowed to {share:g} of their width, which was not measured",
                f"run `ffn-fusion analyze --narrow {shares}`",
            )


def _drop_count(budget: PlanSettings, attentions: int, may_go: int) -> int:
    """How many attentions go; fewer than all of them ``may_go`` where an engine needs some."""
    asked = budget.drop_attention
    count = round(asked * attentions) if 0 < asked < 1 else round(asked)
    if not 0 <= count <= may_go:
        there = f"the model has {attentions}"
        if may_go < attentions:
            there += f", and {', '.join(budget.for_engines)} can do without {may_go} of them"
        raise BlueprintError(
            f"{count} attentions can't be dropped: {there}",
            "give a number or a fraction of them",
        )
    return count


def _for_count(evidence: Evidence, table: ChoiceTable, budget: PlanSettings) -> Selection:
    attentions = sum(choice.only_attention for choice in table.rows)
    drop = _drop_count(budget, len(evidence.importance), attentions)
    ffns = _ffn_count(budget, sum(row.part == "ffn" for row in evidence.removals))
    frontier = Frontier(table, Size(drop, len(table.parent.blocks), ffns))
    damage, fuse = frontier.damage[drop, :, ffns], budget.fuse
    if not np.isfinite(damage).any():
        raise BlueprintError(
            f"{drop} attentions and {ffns} FFNs can't be dropped with what was measured", f"drop fewer, {_MORE}"
        )
    if fuse == "auto":
        # What dropping costs; in a parent that came with attention-free blocks, what dropping those would have.
        given = sum(block.attention is None and block.ffn is not None for block in evidence.parent.blocks)
        typical = float(np.median([row.judged(budget.repair).kl for row in evidence.importance] or [np.inf]))
        allowed = damage[0] * (1 + FUSE_TOLERANCE) + typical * given
        fuse = int(np.flatnonzero(np.isfinite(damage) & (damage <= allowed)).max())
    if fuse >= len(damage) or not np.isfinite(damage[fuse]):
        most = int(np.flatnonzero(np.isfinite(damage)).max())
        raise BlueprintError(
            f"{fuse} FFN steps can't be fused away with {drop} attentions dropped; {most} at most",
            f"drop more attentions, {_MORE}",
        )
    return frontier.selection(Size(drop, fuse, ffns))


def _ffn_count(budget: PlanSettings, measured: int) -> int:
    """How many FFNs go."""
    asked = budget.drop_ffn
    assert asked != "auto"
    count = round(asked * measured) if 0 < asked < 1 else round(asked)
    if count > measured:
        raise BlueprintError(
            f"{count} FFNs can't be dropped: {measured} were measured", "give a number or a fraction of them"
        )
    return count


def _for_steps(table: ChoiceTable, most: int) -> Selection:
    """The least damage among the plans whose child has no more sequential steps than that."""
    before = sum(costs.steps for costs in table.kept)
    selection, saved = least_that_saves(table, lambda choice: table.saved(choice).steps, before - most)
    if selection is None:
        fewest = before - round(saved)
        raise BlueprintError(
            f"{most} sequential steps are out of reach: the parent has {before}, and {fewest} is the fewest",
            f"ask for {fewest} or more, {_MORE}",
        )
    return selection


def _for_parameters(spec: ModelSpec, table: ChoiceTable, share: float) -> Selection:
    """The least damage among the plans whose child has no more than that share of the parent's parameters."""
    total = sum(prod(shape) for shape in model_tensors(spec).values())
    target = ceil((1 - share) * total)
    selection, saved = least_that_saves(table, lambda choice: table.saved(choice).parameters, target)
    if selection is None:
        raise BlueprintError(
            f"{share:g} of the parameters are out of reach: {1 - saved / total:.3f} is the least",
            f"ask for more, let FFNs go or be narrower (--drop-ffn auto, --narrow), {_MORE}",
        )
    return selection


def _for_speedup(spec: ModelSpec, table: ChoiceTable, target: float) -> Selection:
    """The least damage among the plans that reach the target by the cost count."""
    kept = costs_of(spec, Blueprint.identity(table.parent))
    selection, saved = least_that_saves(
        table, lambda choice: time_saved(spec, kept, table.saved(choice)), 1 - 1 / target
    )
    if selection is None:
        raise BlueprintError(
            f"a speed-up of {target:g} is out of reach: by the cost count the most is {1 / (1 - saved):.2f}",
            f"ask for less, {_MORE}",
        )
    return selection
