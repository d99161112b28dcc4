"""What benchmarks/multipliers.py makes of texts and times: multipliers, their products, when a draft pays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab.generated import Generated

SPEED = {"parent": 1.0, "pruned": 1.25, "fused": 1.5, "draft": 8.0}
FORMAT = {"f16": 1.0, "q8_0": 2.0, "q4_0": 4.0}


@pytest.fixture
def multipliers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import multipliers

    return multipliers


def text(speed: float, accepted: int = 0, drafted: int = 0) -> Generated:
    return Generated(tuple(range(13)), 1.0, 12 / speed, drafted, accepted)


@pytest.fixture
def bench(multipliers: Any) -> Any:
    """Three rounds: whatever the machine did in one slowed all down alike. A draft of half a step's cost for each of
    the 2 tokens a step that it proposes, 1 of them accepted: 2 tokens for the cost of 2.5 steps.
    """
    rounds = {}
    for model, of_model in SPEED.items():
        for dtype, of_format in FORMAT.items():
            for draft in ("plain", "11 blocks fewer", "fused in 4 bits", "lookup"):
                fast = of_model * of_format * (1 if draft == "plain" else 0.8)
                counts = (0, 0) if draft == "plain" else (6, 12)
                rounds[model, dtype, draft] = [text(fast * busy, *counts) for busy in (1.0, 0.25, 3.0)]
    made = multipliers.Bench(SimpleNamespace(drafted=2, formats=tuple(FORMAT)), 1)
    made.__dict__["served"] = SimpleNamespace(rounds=rounds, parted={("parent", "f16", "lookup"): [0.02]})
    return made


def test_one_thing_changed(bench: Any) -> None:
    found = bench.alone()
    assert found["fused over parent | median"] == pytest.approx(1.5)
    assert found["fused over pruned | lowest"] == pytest.approx(1.2)
    assert found["q8_0 over f16 | median"] == pytest.approx(2)
    assert found["lookup over plain | highest"] == pytest.approx(0.8)
    assert {row.partition(" | ")[0] for row in found} == {
        *("pruned over parent", "fused over parent", "fused over pruned", "q8_0 over f16", "q4_0 over f16"),
        *(f"{draft} over plain" for draft in ("11 blocks fewer", "fused in 4 bits", "lookup")),
    }


def test_products(bench: Any) -> None:
    bench.served.rounds["fused", "q8_0", "lookup"] = [text(4.8 * busy) for busy in (1.0, 0.25, 3.0)]
    found = bench.together()
    assert found["fused, q8_0, lookup | measured"] == pytest.approx(4.8)
    assert found["fused, q8_0, lookup | product"] == pytest.approx(1.5 * 2 * 0.8)
    assert found["fused, q8_0, lookup | measured over product"] == pytest.approx(2)
    assert found["pruned, q4_0, plain | measured over product"] == pytest.approx(1)
    assert found["pruned, f16, plain | tokens a second"] == pytest.approx(1.25)
    assert "pruned, f16, plain | product" not in found


def test_what_a_draft_brings_and_costs(bench: Any) -> None:
    found = bench.drafts()
    row = "fused, q4_0, fused in 4 bits"  # the model is its own draft
    expected = {
        "over plain": 0.8,
        "drafted a step": 2,
        "accepted": 0.5,
        "tokens a step": 2,
        "a step's cost": 2.5,
        "a draft token's cost": 1,
        "pays below a draft's cost of": 0.75,  # checking costs 0.5, so 1.5 are left for two tokens
        "same texts": 1,
    }
    for column, value in expected.items():
        assert found[f"{row} | {column}"] == pytest.approx(value), column
    needed = found[f"{row} | pays from an acceptance of"]
    assert 1 + needed + needed**2 == pytest.approx(2.5)
    assert found["parent, f16, lookup | same texts"] == pytest.approx(2 / 3)
    assert found["parent, f16, lookup | widest tie, nats"] == 0.02
    assert "parent, f16, lookup | a draft token's cost" not in found


def test_a_draft_in_16_bits_costs_what_it_costs(bench: Any) -> None:
    found = bench.drafts()
    assert found["parent, f16, 11 blocks fewer | a draft token's cost"] == pytest.approx(1 / 32)
    assert found["fused, q4_0, 11 blocks fewer | a draft token's cost"] == pytest.approx(1.5 / 8)
    assert found["parent, f16, fused in 4 bits | a draft token's cost"] == pytest.approx(1 / 6)


def test_no_acceptance_is_enough(multipliers: Any) -> None:
    assert multipliers.acceptance_for(3.1, 2) is None
    assert multipliers.acceptance_for(3, 2) == pytest.approx(1)
    assert multipliers.acceptance_for(1, 2) == pytest.approx(0, abs=1e-9)


def test_checking_costs_more_than_a_draft_brings(multipliers: Any) -> None:
    assert multipliers.affordable(tokens=1.5, cost=3, drafted=4, share=0.25) == pytest.approx(-0.125)
    assert multipliers.affordable(tokens=1, cost=1, drafted=0, share=0.25) == 0
