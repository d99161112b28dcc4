"""How the answers of llama-server are read."""

from __future__ import annotations

from typing import Any

import pytest
from lab.generated import read_generated

from ffn_fusion.errors import CheckError

TIMINGS = {"prompt_ms": 20.0, "predicted_ms": 500.0, "predicted_n": 6}


def answer(**timings: object) -> dict[str, Any]:
    return {"tokens": [5, 6, 7, 8, 9, 10], "timings": {**TIMINGS, **timings}}


def test_an_answer_is_read() -> None:
    found = read_generated(answer())
    assert (found.tokens, found.prompt_s, found.decode_s) == ((5, 6, 7, 8, 9, 10), 0.02, 0.5)
    assert (found.decoded, found.steps, found.drafted) == (5, 5, 0)


def test_accepted_tokens_take_no_step() -> None:
    found = read_generated(answer(draft_n=6, draft_n_accepted=3))
    assert (found.decoded, found.steps, found.drafted, found.accepted) == (5, 2, 6, 3)


@pytest.mark.parametrize("broken", [{}, {"tokens": [1, 2]}, {"tokens": [1, 2], "timings": {"prompt_ms": 1}}])
def test_an_answer_without_times(broken: dict[str, Any]) -> None:
    with pytest.raises(CheckError, match="no times"):
        read_generated(broken)


def test_one_token_is_too_few() -> None:
    with pytest.raises(CheckError, match="1 tokens"):
        read_generated({"tokens": [1], "timings": TIMINGS})
