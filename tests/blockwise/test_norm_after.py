"""Families that norm what a sub-block gives before it is added: the norm, and narrowed FFNs in front of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.cases import NORM_AFTER, write_family
from torch import Tensor
from transformers.activations import ACT2FN

from ffn_fusion.blockwise.edits import NarrowFfn
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.surgery.child import Child

FLOAT32 = 1e-6
"""Relative: these families' norms compute in float32, whatever the model's dtype."""


@pytest.fixture(scope="module", params=NORM_AFTER)
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("norm-after")
    write_family(folder, NORM_AFTER[request.param])
    return open_folder(folder)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= FLOAT32 * wanted.abs().max()


def test_it_stands_between_the_projection_and_the_state(parent: Checkpoint, x: Tensor) -> None:
    block = Stack(parent, dtype=torch.float64).block(1)
    parts: tuple[Any, ...] = ("attention", "ffn")
    for part in parts:
        inner, added = block.inner_and_outer(part, x)
        outer = block.projection(part)(inner)
        assert not torch.allclose(outer, added, rtol=1e-2)
        assert_close(block.added(part, outer), added)


def test_an_ffn_narrowed_in_a_sweep_is_that_of_the_narrowed_child(parent: Checkpoint, x: Tensor) -> None:
    kept = tuple(range(3, 39))
    block = Stack(parent, dtype=torch.float64).block(1)
    child = Stack(Child(parent, parent.blueprint().narrow(1, kept), 1), dtype=torch.float64)
    (edited,) = NarrowFfn(1, kept).advance(1, block, slice(0, 2), x, block.contributions(x), ())
    assert_close(edited, x + child.block(1).contributions(x).block)


def test_the_norm_in_front_is_another(parent: Checkpoint, x: Tensor) -> None:
    """OLMo has none there: its matrices read the state itself."""
    block = Stack(parent, dtype=torch.float64).block(1)
    gate, up = (part for _, tensor, weight in block.into("ffn") for part in weight.chunk(tensor.stacked))
    normed = block.normed(x)
    inner = ACT2FN[parent.spec.activation](normed @ gate.mT) * (normed @ up.mT)
    assert_close(inner, block.inner_and_outer("ffn", x)[0])
    assert torch.equal(normed, x) == parent.spec.family.startswith("olmo")
