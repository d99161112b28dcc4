"""Speculative decoding: tokens of a round, its time, and the acceptance that a speed implies."""

from __future__ import annotations

import random

import pytest

from ffn_fusion.errors import UsageError
from ffn_fusion.families.pattern import pattern_spec
from ffn_fusion.latency.hardware import decode_step, predict, step_seconds
from ffn_fusion.latency.machines import find_machine
from ffn_fusion.latency.speculative import Draft, predict_drafted, tokens_per_round
from ffn_fusion.latency.work import Setting

BIG = pattern_spec([(8, 28672)] * 8, hidden_size=8192, heads=64, vocab_size=128256)
SMALL = pattern_spec([(8, 2048)] * 4, hidden_size=1024, heads=16, vocab_size=128256)
H100, SETTING = find_machine("h100"), Setting(context=256, new_tokens=64)


def test_tokens_of_a_round_by_throwing_dice() -> None:
    chance = random.Random(1)
    total = 0
    for _ in range(20000):
        accepted = 0
        while accepted < 4 and chance.random() < 0.7:
            accepted += 1
        total += accepted + 1
    assert tokens_per_round(4, 0.7) == pytest.approx(total / 20000, rel=0.01)
    assert (tokens_per_round(4, 0.0), tokens_per_round(4, 1.0)) == (1, 5)


def test_a_round_by_its_parts() -> None:
    found = predict_drafted(H100, BIG, SETTING, Draft(SMALL, 3, 0.5))
    steps = 3 * step_seconds(H100, SMALL, SETTING, decode_step(SETTING)).total
    check = step_seconds(H100, BIG, SETTING, decode_step(SETTING, 4)).total
    assert found.decode.total == pytest.approx(steps + check)
    assert found.token == pytest.approx((steps + check) / 1.875)
    plain, draft = (predict(H100, spec, SETTING) for spec in (BIG, SMALL))
    assert found.weight_bytes == plain.weight_bytes + draft.weight_bytes
    assert found.time_to_first_token == pytest.approx(plain.time_to_first_token + draft.time_to_first_token)


def test_checking_several_tokens_costs_little_more_than_one() -> None:
    one, five = (step_seconds(H100, BIG, SETTING, decode_step(SETTING, n)).total for n in (1, 5))
    assert one < five < 1.02 * one


def test_a_draft_of_few_heads_runs_on_few_devices() -> None:
    """16 heads on 8 devices as they are, 9 on one; every device that has it has it whole then."""
    few = pattern_spec([(3, 1536)] * 4, hidden_size=576, heads=9, vocab_size=49152)
    wide = Setting(devices=8)
    assert [Draft(spec).setting(wide).devices for spec in (SMALL, few)] == [8, 1]
    alone, model = (predict(H100, *of) for of in ((few, Setting()), (BIG, wide)))
    found = predict_drafted(H100, BIG, wide, Draft(few, 2))
    assert found.weight_bytes == model.weight_bytes + alone.weight_bytes


@pytest.mark.parametrize("wrong", [{"length": 0}, {"acceptance": 1.2}, {"acceptance": -0.1}])
def test_drafts_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Draft(SMALL, **wrong)  # type: ignore[arg-type]
