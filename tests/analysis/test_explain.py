"""Why a block is what it is, on made-up evidence."""

from __future__ import annotations

import numpy as np
import pytest
from made_evidence import damage, make_evidence
from makers import block_spec

from ffn_fusion.analysis.evidence import Evidence, Geometry, MeasuredRun, MeasuredSideBySide, Removal
from ffn_fusion.analysis.explain import explain
from ffn_fusion.analysis.explanation import Explanation
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Block, Blueprint, KeptSubBlock, NoSubBlock
from ffn_fusion.errors import BlueprintError, UsageError

KL = [0.9, 0.8, 0.1, 0.2, 0.3, 0.7, 0.15, 0.6]
BUDGET = PlanSettings(max_damage=2)


def run(first: int, last: int, fused_last: int, kl: float, *, keeps: bool = False) -> MeasuredRun:
    return MeasuredRun(first=first, last=last, fused_last=fused_last, keeps_attention=keeps, damage=damage(kl))


@pytest.fixture
def evidence() -> Evidence:
    """Blocks 2-4 can go for 0.5, 1-3 for 0.6 or 0.45 with attention 1 kept; 2-4 also whole for 3.0."""
    runs = [
        run(2, 4, 3, 0.5),
        run(1, 3, 2, 1.2),
        run(1, 3, 2, 0.45, keeps=True),
        run(2, 4, 4, 3.0),
        run(5, 7, 6, 1.6),
    ]
    return make_evidence(8, runs, kl=KL)


def child(evidence: Evidence, drop: tuple[int, ...], runs: list[tuple[int, int]]) -> Blueprint:
    return Blueprint.identity(evidence.parent).apply(drop, runs)


@pytest.fixture
def explained(evidence: Evidence) -> Explanation:
    """Attentions 2-4 dropped, FFNs 2-3 fused; block 3."""
    return explain(child(evidence, (2, 3, 4), [(2, 3)]), evidence, 3, budget=BUDGET)


def test_the_decision_in_words(evidence: Evidence, explained: Explanation) -> None:
    attention, ffn = explained.decisions
    assert attention.words == "attention 3: dropped; dropping it alone does 0.2000, rank 3 of 8"
    assert ffn.words == "FFN 3: fused with FFN 2, in child block 2"
    assert (attention.child_block, ffn.child_block) == (None, 2)
    blueprint = child(evidence, (2, 3, 4), [(2, 3)])
    assert explain(blueprint, evidence, 4, budget=BUDGET).decisions[1].words == (
        "FFN 4: kept, in child block 3; the last of the run 2-4, left out of its fusion"
    )
    assert (
        explain(blueprint, evidence, 7, budget=BUDGET)
        .decisions[0]
        .words.startswith("attention 7: kept, in child block 6; ")
    )


def test_neighbours(evidence: Evidence) -> None:
    ffns = tuple(Removal(part="ffn", block=i, damage=damage(i + 1.0)) for i in range(1, 8))
    geometry = tuple(Geometry(part="block", block=i, turn=0.1, direction=0.9, size=0.2 * i) for i in range(8))
    evidence = evidence.model_copy(update={"removals": (*evidence.removals, *ffns), "geometry": geometry})
    found = explain(child(evidence, (2,), []), evidence, 1, budget=BUDGET, around=3).neighbours
    assert [row.block for row in found] == [0, 1, 2, 3, 4]
    assert [row.attention for row in found] == ["kept", "kept", "dropped", "kept", "kept"]
    assert found[2].alone["attention"].rank == 1
    assert found[2].alone["attention"].kl_error == pytest.approx(0.01)
    assert "ffn" not in found[0].alone  # not measured
    assert (found[1].alone["ffn"].rank, found[1].alone["ffn"].ranked) == (1, 7)
    assert "block" not in found[1].alone
    assert [row.geometry[0].size for row in found] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_choices(explained: Explanation) -> None:
    chosen, *others = explained.choices
    assert (chosen.first, chosen.last, chosen.runs, chosen.chosen) == (2, 4, ((2, 3),), True)
    assert (chosen.damage, chosen.damage_error, chosen.per_step) == pytest.approx((0.5, 0.05, 0.125))
    assert not any(other.chosen for other in others)
    assert [other.per_step for other in others] == sorted(other.per_step for other in others)
    assert [(other.damage, other.allowed) for other in others] == [(0.45, True), (0.2, True), (1.2, True), (3.0, False)]


def test_dependency_is_read_along_the_right_axis(evidence: Evidence) -> None:
    matrix = np.full((8, 8), np.nan)
    matrix[0, 3], matrix[1, 3], matrix[3, 5], matrix[4, 5] = 0.2, 0.6, 0.3, 0.9
    evidence = evidence.model_copy(update={"matrices": {"ffn.mean": matrix.tolist()}})
    (found,) = explain(child(evidence, (), []), evidence, 3, budget=BUDGET).dependencies
    assert found.part == "ffn"
    assert [(link.block, link.distance) for link in found.depends_on] == [(1, 0.6), (0, 0.2)]
    assert [(link.block, link.distance) for link in found.needed_by] == [(5, 0.3)]


def test_blocks_side_by_side_are_among_the_choices(evidence: Evidence) -> None:
    """What it saves is counted with its FFN: two steps, no attention dropped."""
    pair = MeasuredSideBySide(first=3, last=4, damage=damage(0.12))
    evidence = evidence.model_copy(update={"side_by_side": (pair,)})
    blueprint = Blueprint.identity(evidence.parent).side_by_side(3, 4)
    found = explain(blueprint, evidence, 3, budget=BUDGET)
    chosen = found.choices[0]
    assert (chosen.merged, chosen.dropped, chosen.runs) == (((3, 4),), (), ((3, 4),))
    assert (chosen.steps, chosen.damage, chosen.chosen) == (2, pytest.approx(0.12), True)
    assert chosen.per_step == pytest.approx(0.06)
    assert [choice.merged for choice in found.choices[1:]] == [()] * (len(found.choices) - 1)
    assert (found.chosen_by, found.least) == ("programme", pytest.approx(0.12))
    elsewhere = explain(Blueprint.identity(evidence.parent).drop_attention([6]), evidence, 3, budget=BUDGET)
    assert any(row.merged == ((3, 4),) for row in elsewhere.choices)


def test_counterfactuals(explained: Explanation) -> None:
    assert explained.chosen_by == "programme"
    assert explained.damage == explained.least == pytest.approx(0.5)
    kept, unfused = explained.counterfactuals
    assert (kept.part, kept.instead, unfused.part, unfused.instead) == ("attention", "kept", "ffn", "unfused")
    assert kept.damage == pytest.approx(1.6)  # the run 5-7 is the only one without attention 3
    assert kept.more == pytest.approx(1.1)
    assert unfused.damage == pytest.approx(0.45 + 0.15)  # 1-3 with attention 1 kept, and 6 alone
    assert unfused.dropped == (2, 3, 6)
    assert unfused.runs == ((1, 2),)


def test_counterfactuals_of_what_was_kept(evidence: Evidence) -> None:
    blueprint = child(evidence, (2, 3, 4), [(2, 3)])
    dropped, fused = explain(blueprint, evidence, 1, budget=BUDGET).counterfactuals
    assert dropped.instead == "dropped"
    assert dropped.damage == pytest.approx(1.2)  # 1-3 with all three
    assert fused.damage == pytest.approx(0.6)
    last = explain(blueprint, evidence, 0, budget=BUDGET).counterfactuals[1]
    assert (last.instead, last.damage, last.more) == ("fused", None, None)  # impossible


def test_limits_of_the_budget_hold(evidence: Evidence) -> None:
    blueprint = child(evidence, (2, 3, 4), [(2, 3)])
    strict = explain(blueprint, evidence, 3, budget=PlanSettings(max_damage=1.5))
    assert strict.counterfactuals[0].damage is None  # 5-7 does more than that
    default = explain(blueprint, evidence, 3)
    assert default.counterfactuals[0].damage is None
    tight = explain(blueprint, evidence, 3, budget=PlanSettings(max_damage=0.1))
    assert (tight.chosen_by, tight.least, tight.damage) == ("unknown", None, pytest.approx(0.5))


def test_a_person_s_choice(evidence: Evidence) -> None:
    found = explain(child(evidence, (1, 2, 3), [(1, 2)]), evidence, 3, budget=BUDGET, by_person=True)
    assert found.chosen_by == "person"
    assert (found.damage, found.least) == (pytest.approx(1.2), pytest.approx(0.5))
    kept = found.counterfactuals[0]
    assert kept.more == pytest.approx(0.4)
    assert found.choices[0].chosen
    unmeasured = explain(child(evidence, (5, 6), [(5, 6)]), evidence, 5, budget=BUDGET, by_person=True)
    assert unmeasured.damage is None
    assert not any(choice.chosen for choice in unmeasured.choices)
    assert [c.more for c in unmeasured.counterfactuals] == [None, None]


def test_not_the_programme_s(evidence: Evidence) -> None:
    assert explain(child(evidence, (1, 2, 3), [(1, 2)]), evidence, 3, budget=BUDGET).chosen_by == "unknown"


def test_what_the_parent_hasn_t_and_what_no_rule_does(evidence: Evidence) -> None:
    free = block_spec(attention=None, ffn="gated", ffn_width=48)
    parent = evidence.parent.model_copy(update={"blocks": (*evidence.parent.blocks[:7], free)})
    evidence = evidence.model_copy(update={"parent": parent, "removals": evidence.removals[:7]})
    identity = Blueprint.identity(parent)
    found = explain(identity, evidence, 7, budget=BUDGET)
    assert found.decisions[0].words == "attention 7: none in the parent"
    assert [other.part for other in found.counterfactuals] == ["ffn"]
    dropped = Block(parent_blocks=(6, 6), attention=KeptSubBlock(source=6), ffn=NoSubBlock())
    blueprint = Blueprint(parent=parent, blocks=(*identity.blocks[:6], dropped, identity.blocks[7]))
    found = explain(blueprint, evidence, 6, budget=BUDGET)
    assert found.decisions[1].fate == "dropped"
    assert (found.damage, found.chosen_by) == (None, "unknown")
    assert [other.part for other in found.counterfactuals] == ["attention"]


def test_mistakes(evidence: Evidence) -> None:
    blueprint = child(evidence, (2,), [])
    for block in (-1, 8):
        with pytest.raises(UsageError, match="outside the model, which has 8 blocks"):
            explain(blueprint, evidence, block)
    with pytest.raises(BlueprintError, match="another model"):
        explain(blueprint, make_evidence(9), 1)
