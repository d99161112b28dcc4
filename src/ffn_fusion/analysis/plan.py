"""From evidence and a budget to a blueprint. No torch: planning again never measures again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ffn_fusion.analysis.cost_count import counted_speedup_of, steps
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import loadable_moves, plan_problems
from ffn_fusion.analysis.runs import Frontier, Selection, possible_moves
from ffn_fusion.analysis.settings import FUSE_TOLERANCE, PlanSettings
from ffn_fusion.blueprint import Blueprint, apply
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import ModelSpec
from ffn_fusion.portability.rule import EngineCheck

_MORE = "allow more damage (--max-damage), or measure longer runs (analyze --max-run)"


@dataclass(frozen=True)
class Plan:
    """A blueprint and what it's expected to do: summed damage (KL, nats a token) and the counted speed-up.

    ``engines``: those that have to load the child, with what the parent brings along that `check --fix` has to mend.
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
    plan_problems(spec, Blueprint.identity(evidence.parent), budget.for_engines)
    loads = loadable_moves(spec, budget.for_engines)
    moves = [m for m in possible_moves(evidence, budget.max_damage, budget.max_width, budget.repair) if loads(m)]
    attentions = sum(move.stretch is None for move in moves)
    frontier = Frontier(len(spec.blocks), moves, attentions)
    if budget.steps is not None:
        selection = _for_steps(evidence, frontier, budget.steps)
    elif budget.speedup is not None:
        selection = _for_speedup(spec, frontier, budget.speedup)
    else:
        drop = _drop_count(budget, len(evidence.importance), attentions)
        selection = _for_count(evidence, frontier, drop, budget)
    blueprint = apply(Blueprint.identity(evidence.parent), selection.dropped, selection.runs, norm=budget.norm)
    return Plan(blueprint, selection, _speedup(spec, selection))


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


def _for_count(evidence: Evidence, frontier: Frontier, drop: int, budget: PlanSettings) -> Selection:
    damage, fuse = frontier.damage[drop], budget.fuse
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
    return frontier.selection(drop, fuse)


def _for_steps(evidence: Evidence, frontier: Frontier, most: int) -> Selection:
    """The least damage among the plans whose child has no more sequential steps than that."""
    before = steps(Blueprint.identity(evidence.parent))
    rows, columns = frontier.damage.shape
    left = before - np.arange(rows)[:, None] - np.arange(columns)
    fitting = np.where(left <= most, frontier.damage, np.inf)
    n, f = np.unravel_index(np.argmin(fitting), fitting.shape)
    if not np.isfinite(fitting[n, f]):
        fewest = int(left[np.isfinite(frontier.damage)].min())
        raise BlueprintError(
            f"{most} sequential steps are out of reach: the parent has {before}, and {fewest} is the fewest",
            f"ask for {fewest} or more, {_MORE}",
        )
    return frontier.selection(int(n), int(f))


def _for_speedup(spec: ModelSpec, frontier: Frontier, target: float) -> Selection:
    """The least damage among the plans that reach the target by the cost count."""
    found: Selection | None = None
    best = 0.0
    order = np.dstack(np.unravel_index(np.argsort(frontier.damage, axis=None), frontier.damage.shape))[0]
    for n, f in order:
        if not np.isfinite(frontier.damage[n, f]):
            break
        candidate = frontier.selection(int(n), int(f))
        best = max(best, _speedup(spec, candidate))
        if _speedup(spec, candidate) >= target:
            found = candidate
            break
    if found is None:
        raise BlueprintError(
            f"a speed-up of {target:g} is out of reach: by the cost count the most is {best:.2f}",
            f"ask for less, {_MORE}",
        )
    return found


def _speedup(spec: ModelSpec, selection: Selection) -> float:
    return counted_speedup_of(spec, selection.dropped, len(selection.dropped) + selection.fused_steps)
