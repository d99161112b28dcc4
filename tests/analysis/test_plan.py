from __future__ import annotations

import pytest
from made_evidence import damage, make_evidence
from makers import llama_config

from ffn_fusion.analysis.cost_count import counted_speedup, steps
from ffn_fusion.analysis.evidence import Evidence, MeasuredRun, MeasuredSideBySide
from ffn_fusion.analysis.plan import plan
from ffn_fusion.analysis.rules import control_plans
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint, WideAttention
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import ModelSpec, read_spec
from ffn_fusion.portability.rule import Engine


def spec(blocks: int = 8) -> ModelSpec:
    return read_spec(llama_config(num_hidden_layers=blocks))


def run(first: int, last: int, fused_last: int, kl: float, *, keeps: bool = False) -> MeasuredRun:
    return MeasuredRun(first=first, last=last, fused_last=fused_last, keeps_attention=keeps, damage=damage(kl))


@pytest.fixture
def evidence() -> Evidence:
    return make_evidence(8, [run(2, 4, 3, 0.15), run(4, 6, 5, 0.12, keeps=True), run(5, 7, 6, 9.0)])


def test_number_and_fraction_of_attentions(evidence: Evidence) -> None:
    for budget in (2, 0.25):
        made = plan(spec(), evidence, PlanSettings(drop_attention=budget, fuse=0))
        assert made.blueprint.dropped_attentions == (0, 1)
        assert made.blueprint.runs == ()


def test_fusing_takes_the_measured_run(evidence: Evidence) -> None:
    made = plan(spec(), evidence, PlanSettings(drop_attention=2, fuse=1))
    assert made.blueprint.runs == ((4, 5),)
    assert made.blueprint.dropped_attentions == (5, 6)
    assert made.selection.score == pytest.approx(0.12)


def test_auto_fuses_while_it_costs_no_more_than_dropping(evidence: Evidence) -> None:
    # Three dropped alone cost 0.06, so 0.12 in all is allowed; the cheapest way to fuse costs 0.13 with the third.
    assert plan(spec(), evidence, PlanSettings(drop_attention=3)).blueprint.runs == ()
    # Four cost 0.10, 0.20 is allowed, and fusing 4-5 with two more dropped costs 0.15.
    assert plan(spec(), evidence, PlanSettings(drop_attention=4)).blueprint.runs == ((4, 5),)


def test_auto_counts_what_repaired_changes_do(evidence: Evidence) -> None:
    """Dropping three does as much as before, and the run, repaired, hardly anything."""
    runs = tuple(s.model_copy(update={"repaired": damage(s.damage.kl / 10)}) for s in evidence.runs)
    repaired = evidence.model_copy(update={"runs": runs})
    assert plan(spec(), repaired, PlanSettings(drop_attention=3)).blueprint.runs != ()
    assert plan(spec(), repaired, PlanSettings(drop_attention=3, repair=False)).blueprint.runs == ()


def test_speedup_budget_is_reached_with_the_least_damage(evidence: Evidence) -> None:
    made = plan(spec(), evidence, PlanSettings(speedup=1.1))
    assert made.counted_speedup >= 1.1
    assert made.counted_speedup == pytest.approx(counted_speedup(spec(), made.blueprint))
    with pytest.raises(BlueprintError, match="out of reach"):
        plan(spec(), evidence, PlanSettings(speedup=5))


def test_steps_budget_is_met_with_the_least_damage(evidence: Evidence) -> None:
    made = plan(
        spec(), evidence, PlanSettings(steps=13)
    )  # three fewer: 0, 1 and 2 alone, or fusing 4-5 with two dropped
    assert steps(made.blueprint) == 13
    assert made.selection.score == pytest.approx(0.06)
    assert plan(spec(), evidence, PlanSettings(steps=16)).blueprint.is_identity
    assert plan(spec(), evidence, PlanSettings(steps=6, max_damage=10)).blueprint.runs == ((2, 3), (5, 6))


def test_blocks_side_by_side_are_choices_among_others(evidence: Evidence) -> None:
    """Two steps saved for less than any attention and any run; wider than may be, they aren't taken."""
    row = MeasuredSideBySide(first=5, last=6, damage=damage(0.005))
    with_blocks = evidence.model_copy(update={"side_by_side": (row,)})
    made = plan(spec(), with_blocks, PlanSettings(steps=14))
    (block,) = (b for b in made.blueprint.blocks if b.parent_blocks == (5, 6))
    assert block.attention == WideAttention(sources=(5, 6))
    assert made.blueprint.dropped_attentions == ()
    assert made.selection.score == pytest.approx(0.005)
    assert steps(made.blueprint) == 14
    narrower = plan(spec(), with_blocks, PlanSettings(steps=14, max_width=95))
    assert narrower.blueprint.dropped_attentions == (0, 1)
    assert made.blueprint.merged == made.selection.merged == ((5, 6),)
    assert [row.name for row in control_plans(made.blueprint, with_blocks, PlanSettings())] == ["greedy rule"]


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "sglang"])
def test_engines_that_lack_them_are_known_at_plan_time(evidence: Evidence, engine: Engine) -> None:
    """One pair beside other attentions: SGLang has one number of heads for all blocks."""
    row = MeasuredSideBySide(first=5, last=6, damage=damage(0.005))
    with_blocks = evidence.model_copy(update={"side_by_side": (row,)})
    wide = read_spec(llama_config(num_hidden_layers=8, intermediate_size=256))
    parent = wide.parent("made-up")
    made = plan(
        wide,
        with_blocks.model_copy(update={"parent": parent}),
        PlanSettings(steps=14, for_engines=(engine,)),
    )
    beside = any(len(block.attention.sources) > 1 for block in made.blueprint.blocks)
    assert beside == (engine != "sglang")


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (PlanSettings(drop_attention=9), "has 8"),
        (PlanSettings(drop_attention=2, fuse=5), "1 at most"),
        (PlanSettings(steps=6), "6 sequential steps are out of reach: the parent has 16, and 7 is the fewest"),
    ],
)
def test_budgets_out_of_reach(evidence: Evidence, budget: PlanSettings, line: str) -> None:
    with pytest.raises(BlueprintError, match=line):
        plan(spec(), evidence, budget)


def test_evidence_of_another_model(evidence: Evidence) -> None:
    with pytest.raises(BlueprintError, match="another model"):
        plan(spec(9), evidence, PlanSettings())


def test_cost_count() -> None:
    identity = Blueprint.identity(spec().parent("m"))
    assert counted_speedup(spec(), identity) == 1
    dropped = identity.apply([3, 4])
    fused = identity.apply([3, 4], [(3, 4)])
    assert (steps(identity), steps(dropped), steps(fused)) == (16, 14, 13)
    assert 1 < counted_speedup(spec(), dropped) < counted_speedup(spec(), fused)
