"""Make the plan, by a budget and evidence or as a person specified it, and check it for engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ffn_fusion.analysis.cost_count import counted_speedup
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import plan_problems
from ffn_fusion.analysis.plan import Plan, plan
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Selection
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.portability.rule import Engine, EngineCheck
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
