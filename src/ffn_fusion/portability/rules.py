"""What each engine loads of a model: asked by the checker, the fixer, the exporter and the planner. No torch.

The rules themselves are in ``portability.form`` (Nemotron-NAS: blocks, sizes), ``portability.own_form`` (a family's own
form) and ``portability.shipped`` (config.json, files).
"""

from __future__ import annotations

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.families import ModelSpec, family_of
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.portability.form import FORM_RULES
from ffn_fusion.portability.own_form import OWN_FORM_RULES, shaped_like_llama
from ffn_fusion.portability.rule import ENGINES, Engine, Problem, Verdict, broken, parse_engines, verdict

__all__ = [
    "ENGINES",
    "Engine",
    "Problem",
    "Verdict",
    "blueprint_problems",
    "parse_engines",
    "problems",
    "verdict",
]


def problems(spec: ModelSpec, engine: Engine) -> tuple[Problem, ...]:
    """Everything that keeps ``engine`` from loading a model of this form, as far as its blocks and sizes tell."""
    own = family_of(spec).form and not (engine == "llama.cpp" and shaped_like_llama(spec))
    return broken(OWN_FORM_RULES if own else FORM_RULES, spec, engine)


def blueprint_problems(
    blueprint: Blueprint, parent: ModelSpec, engine: Engine, width_multiple: int = WIDTH_MULTIPLE
) -> tuple[Problem, ...]:
    """What would keep ``engine`` from loading the child of this blueprint: for planning, before anything is built.

    Blocks are the child's, numbered without the empty ones.
    """
    return problems(child_spec(parent, blueprint, width_multiple), engine)
