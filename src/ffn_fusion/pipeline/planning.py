"""The plan of a run, and of the verbs that build: by the budget, or as a person said it; for engines that load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ffn_fusion.analysis.cost_count import counted_speedup
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import plan_problems
from ffn_fusion.analysis.plan import Plan, plan
from ffn_fusion.analysis.runs import Selection
from ffn_fusion.blueprint import Blueprint, apply
from ffn_fusion.blueprint.ranges import parse_blocks, parse_runs
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.pipeline.recipe import PlanSection
from ffn_fusion.portability.rule import Engine, EngineCheck


def make_plan(
    checkpoint: Checkpoint,
    evidence: Evidence | None,
    section: PlanSection,
    *,
    repaired: bool = True,
    width_multiple: int = WIDTH_MULTIPLE,
) -> Plan:
    """By the budget from evidence, or what ``drop`` and ``runs`` say. ``repaired``: the child will be.

    Raises:
        BlueprintError: not possible for this model, or the budget is out of reach.
        CheckError: an engine asked for can't load the child.
    """
    if section.drop is None:
        assert evidence is not None
        made = plan(checkpoint.spec, evidence, section.budget(repaired))
    else:
        identity = Blueprint.identity(checkpoint.spec.parent(checkpoint.name, checkpoint.revision))
        drop, runs = parse_blocks(section.drop), parse_runs(section.runs or "")
        blueprint = apply(identity, drop, runs, norm=section.norm, max_width=section.max_width)
        made = Plan(blueprint, Selection(()), counted_speedup(checkpoint.spec, blueprint))
    return for_engines(made, checkpoint.spec, section.engines, width_multiple)


def for_engines(made: Plan, spec: ModelSpec, engines: Sequence[Engine], width_multiple: int) -> Plan:
    """The plan with what's left to do for its engines.

    Raises:
        CheckError: one of them can't load the child.
    """
    left = plan_problems(spec, made.blueprint, engines, width_multiple)
    checks = (EngineCheck(engine, tuple(p for p in left if p.engine == engine)) for engine in engines)
    return replace(made, engines=tuple(checks))


def check_early(checkpoint: Checkpoint, section: PlanSection, width_multiple: int = WIDTH_MULTIPLE) -> None:
    """What can be known of the plan before anything is measured.

    Raises:
        BlueprintError: the attentions and runs that a person named aren't possible.
        CheckError: an engine asked for can't load that child, or any child of this model.
    """
    if section.drop is not None:
        make_plan(checkpoint, None, section, width_multiple=width_multiple)
    else:
        plan_problems(checkpoint.spec, Blueprint.identity(checkpoint.spec.parent("")), section.engines)
