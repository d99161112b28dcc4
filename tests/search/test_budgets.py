"""What candidates take under a load, by hand."""

from __future__ import annotations

import pytest

from ffn_fusion.blueprint.choices import Costs
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.search.budgets import Load, parse_amount
from ffn_fusion.search.candidates import Candidate, Candidates, Scenario, Seconds
from ffn_fusion.search.priced import Priced
from ffn_fusion.search.problem import make_problem
from ffn_fusion.search.search import search
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.search.table import Key

ALL = frozenset({"parameters", "weight_bytes", "kv_bytes", "steps", "prefill_seconds", "decode_seconds"})


def one_block(known: frozenset[str] = ALL) -> Candidates:
    """A kept block, timed at contexts 100 and 300 at batch 2; the rest takes a tenth."""
    seconds = {Scenario(2, 100): Seconds(1.0, 0.1), Scenario(2, 300): Seconds(5.0, 0.2)}
    rest = {at: Seconds(s.prefill / 10, s.decode / 10) for at, s in seconds.items()}
    kept = Candidate(
        Key(0, 0, "block", "kept"), ((0, "attention"), (0, "ffn")), 0.0, 0.0, Costs(2, 500, 1000, 7), seconds
    )
    return Candidates(1, (kept,), known, Costs(0, 50, 100, 0), rest)


def test_sums_of_a_load() -> None:
    priced = Priced(one_block(), Load(batch=2, tokens_in=200, tokens_out=40, price=3.6))
    assert priced.parent == pytest.approx(
        {
            "steps": 2,
            "parameters": 550,
            "kv": 7,
            "memory": 1100 + 2 * 240 * 7,
            "first-token": 3.3,  # between 100 and 300 tokens
            "latency": 0.176,  # at 220 tokens: 0.1 + 0.6 * 0.1, and a tenth of that
            "request": 3.3 + 40 * 0.176,
            "throughput": 3.3 + 40 * 0.176,
            "cost": 3.3 + 40 * 0.176,
        }
    )
    found = make_problem(
        one_block(), SearchSettings(tokens_in=200, tokens_out=40, price=3.6, batch=(2,)), batch=2
    ).solve()
    assert found
    assert found.values["throughput"] == pytest.approx(80 / 10.34)
    assert found.values["cost"] == pytest.approx(3.6 / 3600 * 10.34 / 80 * 1e6)
    assert priced.notes == ()


def test_decode_steps_outside_of_what_was_timed_are_told_and_prefills_refused() -> None:
    priced = Priced(one_block(), Load(batch=2, tokens_in=300, tokens_out=100))
    assert priced.parent["latency"] == pytest.approx(0.22)
    assert "300 tokens of context, the nearest to 350" in priced.notes[0]
    beyond = Priced(one_block(), Load(batch=2, tokens_in=301, tokens_out=1))
    assert beyond.known() == ["memory", "latency", "steps", "parameters", "kv"]
    for name in ("first-token", "request", "throughput", "cost"):
        with pytest.raises(DataError, match=r"no prefill of 301 tokens was timed at batch 2; .* 100 to 300"):
            beyond.bound(name, parse_amount(name, "0.5x"))


def test_a_batch_that_was_not_timed_matters_to_seconds_alone() -> None:
    priced = Priced(one_block(), Load(batch=3, tokens_in=100, tokens_out=10))
    assert priced.known() == ["memory", "steps", "parameters", "kv"]
    assert priced.notes[0].startswith("nothing was timed at batch 3; the costs table has batch 2")
    with pytest.raises(DataError, match="nothing was timed at batch 3"):
        priced.bound("latency", parse_amount("latency", "0.5x"))


def test_requests_without_a_prefill_are_their_decode_steps() -> None:
    priced = Priced(one_block(ALL - {"prefill_seconds"}), Load(batch=2, tokens_in=100, tokens_out=2))
    assert priced.parent["request"] == pytest.approx(2 * 0.11 * 1.005)
    assert "no prefill_seconds" in priced.notes[0]
    with pytest.raises(UsageError, match="first-token needs prefill_seconds"):
        priced.bound("first-token", parse_amount("first-token", "1s"))


@pytest.mark.parametrize(
    ("name", "text", "bound"),
    [
        ("memory", "2KiB", 2048),
        ("memory", "0.5x", 0.5 * (1100 + 2 * 140 * 7)),
        ("latency", "20ms", 0.02),
        ("steps", "2", 2),
        ("parameters", "1.5M", 1.5e6),
        ("throughput", "80", 1.0),
        ("throughput", "2x", (1.1 + 40 * 0.11 * 1.1) / 2),
        ("cost", "25", 2.0),
        ("cost", "0.5x", (1.1 + 40 * 0.11 * 1.1) / 2),
    ],
)
def test_bounds(name: str, text: str, bound: float) -> None:
    priced = Priced(one_block(), Load(batch=2, tokens_in=100, tokens_out=40, price=3.6))
    assert priced.bound(name, parse_amount(name, text)) == pytest.approx(bound)


def test_of_several_batches_the_best_child_is_taken() -> None:
    """The same budget allows more at another batch size."""
    fast = {Scenario(b, 100): Seconds(1.0, 0.1) for b in (1, 4)}
    slow = {Scenario(1, 100): Seconds(1.0, 0.3), Scenario(4, 100): Seconds(1.0, 0.4)}
    cells = ((0, "attention"), (0, "ffn"))
    rows = (
        Candidate(Key(0, 0, "block", "kept"), cells, 0.0, 0.0, Costs(), slow),  # type: ignore[arg-type]
        Candidate(Key(0, 0, "block", "none"), cells, 1.0, 0.1, Costs(), fast),  # type: ignore[arg-type]
    )
    of = Candidates(1, rows, frozenset({"prefill_seconds", "decode_seconds"}))
    asked = SearchSettings.model_validate({"min_throughput": "7", "batch": (1, 4, 1), "tokens_out": 10})
    outcome = search(of, asked)
    assert {batch: found.score if found else None for batch, found in outcome.batches.items()} == {1: None, 4: 0.0}
    assert outcome.found[0].load.batch == 4
    assert outcome.problem.load.batch == 4
