"""Make the plan, by a budget and evidence or as a person specified it, and check it for engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ffn_fusion.analysis.cost_count import counted_speedup, price_of
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import plan_problems
from ffn_fusion.analysis.plan import Plan, plan
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import ChoiceTable, Selection
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.portability.rule import Engine, EngineCheck
from ffn_fusion.puzzle.store import COSTS, SCORES
from ffn_fusion.search.candidates import Candidate, read_tables
from ffn_fusion.search.child import blueprint_of, loadable
from ffn_fusion.search.search import search
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.surgery.build import check_blueprint


def make_plan(
    checkpoint: Checkpoint,
    evidence: Evidence | None,
    settings: PlanSettings,
    *,
    width_multiple: int = WIDTH_MULTIPLE,
) -> Plan:
    """Plan by a budget and evidence, or carry out the changes that a person named.

    Raises:
        BlueprintError: not possible for this model, or the budget is out of reach.
        CheckError: an engine asked for can't load the child.
    """
    if not settings.explicit:
        assert evidence is not None
        made = plan(checkpoint.spec, evidence, settings)
    else:
        return given_plan(checkpoint, _named_changes(checkpoint, settings), settings.for_engines, width_multiple)
    return for_engines(made, checkpoint.spec, settings.for_engines, width_multiple)


def _named_changes(checkpoint: Checkpoint, settings: PlanSettings) -> Blueprint:
    drop, runs, beside = settings.without_attention, settings.runs, settings.side_by_side
    blueprint = checkpoint.blueprint().apply(drop, runs, beside, norm=settings.norm, max_width=settings.max_width)
    blueprint = blueprint.make_linear(settings.linear_attention, "attention").make_linear(settings.linear_ffn, "ffn")
    for block in settings.pool_heads:
        blueprint = blueprint.pool_heads(block, settings.kv_heads or 1)
    check_blueprint(checkpoint, blueprint)
    return blueprint


def searched_plan(checkpoint: Checkpoint, library: Path, settings: SearchSettings, width_multiple: int) -> Plan:
    """Return the plan of the best child that a library and some budgets allow.

    Raises:
        BlueprintError: no child keeps to the budgets. DataError: tables that can't be used. CheckError: an engine asked
            for can't load the child.
    """
    candidates = read_tables(library / SCORES["kl"], library / COSTS)
    engines, identity = settings.for_engines, checkpoint.blueprint()
    allowed = loadable(candidates, checkpoint.spec, engines) if engines else None
    found = search(candidates, settings, allowed).found[0]
    blueprint = blueprint_of(found.chosen, identity.parent)
    check_blueprint(checkpoint, blueprint)
    table = ChoiceTable(identity.parent, price_of(checkpoint.spec))
    damages: dict[tuple[int, int], list[Candidate]] = {}
    for candidate in found.chosen:
        if not candidate.kept:
            damages.setdefault(candidate.key[:2], []).append(candidate)
    choices = []
    for (first, last), there in sorted(damages.items()):
        blocks = [block for block in blueprint.blocks if first <= block.parent_blocks[0] <= last]
        error = math.hypot(*(candidate.error for candidate in there))
        choices.append(table.choice(blocks, math.fsum(candidate.score for candidate in there), error))
    made = Plan(blueprint, Selection(tuple(choices)), counted_speedup(checkpoint.spec, blueprint))
    return for_engines(made, checkpoint.spec, engines, width_multiple)


def given_plan(
    checkpoint: Checkpoint, blueprint: Blueprint, engines: Sequence[Engine], width_multiple: int = WIDTH_MULTIPLE
) -> Plan:
    """Return the plan of a given blueprint.

    Raises:
        CheckError: an engine asked for can't load the child.
    """
    made = Plan(blueprint, Selection(()), counted_speedup(checkpoint.spec, blueprint))
    return for_engines(made, checkpoint.spec, engines, width_multiple)


def for_engines(made: Plan, spec: ModelSpec, engines: Sequence[Engine], width_multiple: int) -> Plan:
    """Return the plan with the problems that each engine has left.

    Raises:
        CheckError: one of them can't load the child.
    """
    left = plan_problems(spec, made.blueprint, engines, width_multiple)
    checks = (EngineCheck(engine, tuple(p for p in left if p.engine == engine)) for engine in engines)
    return replace(made, engines=tuple(checks))


def check_early(checkpoint: Checkpoint, settings: PlanSettings, width_multiple: int = WIDTH_MULTIPLE) -> None:
    """Check what can be known of the plan before anything is measured.

    Raises:
        BlueprintError: the attentions and runs that a person named aren't possible.
        CheckError: an engine asked for can't load that child, or any child of this model.
    """
    if settings.explicit:
        make_plan(checkpoint, None, settings, width_multiple=width_multiple)
    else:
        plan_problems(checkpoint.spec, Blueprint.identity(checkpoint.spec.parent("")), settings.for_engines)
