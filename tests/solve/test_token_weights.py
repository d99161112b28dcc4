"""Weights that keep a few tokens from owning a fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ffn_fusion.solve.token_weights import Weighting, median_norm, token_weights

KINDS: list[Weighting] = ["none", "inverse-energy", "capped"]
NORMS = torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0, 2.0, 1000.0])


def states(norms: torch.Tensor) -> torch.Tensor:
    return norms[:, None] * torch.nn.functional.normalize(torch.ones(1, 4))


def test_weights_by_norm() -> None:
    expected = {
        "none": [1, 1, 1, 1, 1, 1, 1],
        "inverse-energy": [100, 4, 1, 1, 1, 0.25, 1e-6],
        "capped": [1, 1, 1, 1, 1, 1, 9e-6],
    }
    for kind in KINDS:
        torch.testing.assert_close(token_weights(states(NORMS), kind), torch.tensor(expected[kind]).float())
    torch.testing.assert_close(token_weights(states(NORMS), "capped", cap=1.0)[-2:], torch.tensor([0.25, 1e-6]))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_not_finite_weigh_nothing(kind: Weighting) -> None:
    y = states(NORMS)
    y[2, 1], y[5, 0] = float("nan"), float("inf")
    weights = token_weights(y, kind)
    assert weights.isfinite().all()
    assert weights[[2, 5]].tolist() == [0, 0]
    assert bool((weights[[0, 1, 3, 4, 6]] > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_huge_but_finite_norms_weigh_something_finite(kind: Weighting) -> None:
    y = states(NORMS)
    y[6] = 1e30
    assert token_weights(y, kind).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [0, 3])
def test_nothing_to_go_by_is_one_each(kind: Weighting, tokens: int) -> None:
    assert token_weights(torch.zeros(tokens, 4), kind).tolist() == [1.0] * tokens


def test_chunks_agree_on_a_given_median() -> None:
    y = states(NORMS)
    median = median_norm(y)
    joint = token_weights(y, "inverse-energy")
    parts = [token_weights(part, "inverse-energy", median=median) for part in y.split(2)]
    assert torch.equal(torch.cat(parts), joint)


def test_another_kind_is_refused() -> None:
    kind: Any = "square"
    with pytest.raises(ValueError, match="inverse-energy"):
        token_weights(states(NORMS), kind)
