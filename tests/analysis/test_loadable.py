"""Plans for engines: the best of all that they load, and a clear word where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from every_plan import damage_of, every_plan, random_evidence, size_of
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import damage, make_evidence
from makers import llama_config, nas_config
from tiny import tiny_model

from ffn_fusion.analysis.choices import choices_of
from ffn_fusion.analysis.evidence import Evidence, MeasuredRun
from ffn_fusion.analysis.loadable import loadable_choices, plan_problems
from ffn_fusion.analysis.plan import plan
from ffn_fusion.analysis.rules import control_plans
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Selection, Size
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import BlueprintError, CheckError
from ffn_fusion.families import ModelSpec, read_spec
from ffn_fusion.portability.check import check
from ffn_fusion.portability.rules import ENGINES, Engine, blueprint_problems
from ffn_fusion.surgery.build import build


def spec(blocks: int = 8, **changes: object) -> ModelSpec:
    return read_spec(llama_config(num_hidden_layers=blocks, **changes))


def test_an_attention_that_an_engine_needs_is_kept() -> None:
    evidence = make_evidence(8)  # the first attention does the least
    for engines, dropped in (((), (0, 1)), (("transformers",), (0, 1)), (("vllm",), (1, 2)), (("llama.cpp",), (1, 2))):
        made = plan(spec(), evidence, PlanSettings(drop_attention=2, for_engines=engines))
        assert made.blueprint.dropped_attentions == dropped


def test_a_run_from_the_first_block_needs_its_attention() -> None:
    runs = [
        MeasuredRun(first=0, last=2, fused_last=1, keeps_attention=keeps, damage=damage(kl))
        for keeps, kl in ((False, 0.01), (True, 0.02))
    ]
    evidence = make_evidence(8, runs)
    made = plan(spec(), evidence, PlanSettings(drop_attention=3, fuse=1, for_engines=("vllm",)))
    assert made.blueprint.runs == ((0, 1),)
    assert 0 not in made.blueprint.dropped_attentions
    (greedy,) = (
        row.blueprint
        for row in control_plans(made.blueprint, evidence, PlanSettings(), loadable_choices(spec(), ("vllm",)))
        if row.name == "greedy rule"
    )
    assert 0 not in greedy.dropped_attentions


@given(random_evidence(5), st.sets(st.sampled_from(ENGINES)).map(tuple))
def test_least_damage_of_all_that_load(evidence: Evidence, engines: tuple[Engine, ...]) -> None:
    """Every possible plan is asked as a whole; the programme asks single choices."""
    model = spec(len(evidence.parent.blocks), intermediate_size=10)
    best: dict[Size, float] = {}
    for way in every_plan(choices_of(evidence, np.inf)):
        child = Selection(way).blueprint(evidence.parent)
        if not any(blueprint_problems(child, model, engine) for engine in engines):
            best[size_of(way)] = min(best.get(size_of(way), np.inf), damage_of(way))
    for (drop, fuse, _), least in best.items():
        made = plan(
            model, evidence, PlanSettings(drop_attention=drop, fuse=fuse, max_damage=np.inf, for_engines=engines)
        )
        assert made.selection.score == pytest.approx(least)
        assert plan_problems(model, made.blueprint, engines) == ()
        assert not any(blueprint_problems(made.blueprint, model, engine) for engine in engines)


def test_the_built_child_loads(tmp_path: Path) -> None:
    """What the planner knows is what `check` finds in the folder."""
    parent = open_folder(tiny_model(tmp_path / "parent").folder)
    run = MeasuredRun(first=1, last=3, fused_last=2, keeps_attention=False, damage=damage(0.1))
    evidence = make_evidence(len(parent.spec.blocks), [run], width=parent.spec.parent("").blocks[0].ffn_width)
    chosen = plan(parent.spec, evidence, PlanSettings(drop_attention=3, fuse=1, for_engines=ENGINES))
    build(parent, chosen.blueprint, tmp_path / "child")
    assert [row.verdict for row in check(open_folder(tmp_path / "child"))] == ["loads"] * len(ENGINES)


def test_more_than_may_go() -> None:
    with pytest.raises(BlueprintError, match="the model has 8, and vllm can do without 7"):
        plan(spec(), make_evidence(8), PlanSettings(drop_attention=8, for_engines=("vllm",)))


def test_no_child_of_this_parent() -> None:
    gelu = spec(hidden_act="gelu")
    with pytest.raises(CheckError, match="vllm can't load any child of this model: it refuses an activation"):
        plan(gelu, make_evidence(8), PlanSettings(for_engines=("mlx", "vllm")))
    assert plan(gelu, make_evidence(8), PlanSettings(for_engines=("mlx",))).blueprint.dropped_attentions


def test_a_child_that_a_person_named() -> None:
    identity = Blueprint.identity(spec().parent("p"))
    with pytest.raises(CheckError, match="vllm can't load this child at the child's block 0: it begins") as error:
        plan_problems(spec(), identity.apply((0, 3), ()), ("transformers", "vllm"))
    assert "check --fix" in error.value.hint
    assert plan_problems(spec(), identity.apply((0, 3), ()), ("transformers", "mlx")) == ()


def test_what_the_parent_brings_along_is_told() -> None:
    """Two numbers of KV heads: no plan's fault, and `check --fix` repeats them."""
    mixed = read_spec(nas_config([(4, 48), (2, 48), (2, 48)]))
    identity = Blueprint.identity(mixed.parent("p"))
    left = plan_problems(mixed, identity.apply((2,), ()), ("vllm", "sglang"))
    assert {(problem.engine, problem.rule) for problem in left} == {("sglang", "kv-heads")}


def test_widths_are_those_that_will_be_written() -> None:
    identity = Blueprint.identity(spec(intermediate_size=256).parent("p"))
    odd = read_spec(llama_config(num_hidden_layers=8, intermediate_size=300))
    assert plan_problems(odd, Blueprint.identity(odd.parent("p")), ("sglang",)) == ()
    assert [p.rule for p in plan_problems(odd, Blueprint.identity(odd.parent("p")), ("sglang",), 1)] == ["width"] * 8
    assert plan_problems(spec(intermediate_size=256), identity, ("sglang",), 1) == ()
