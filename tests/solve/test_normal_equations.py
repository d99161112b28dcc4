"""Sums over tokens against what they are sums of."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regressions import distance, problem

from ffn_fusion.solve import normal_equations
from ffn_fusion.solve.normal_equations import NormalEquations, normal_equations_bytes, product

DTYPES = st.sampled_from([torch.float32, torch.float64])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes then have several blocks of rows, the last one ragged."""
    monkeypatch.setattr(normal_equations, "PRODUCT_ROWS", 3)
    monkeypatch.setattr(normal_equations, "_ROWS", 5)


@given(n=st.integers(0, 23), f=st.integers(1, 10), d=st.integers(1, 4), bias=st.booleans(), dtype=DTYPES)
def test_sums_are_the_products(n: int, f: int, d: int, bias: bool, dtype: torch.dtype) -> None:
    p = problem(n, f, d, zeros=0.3)
    sums = p.sums(bias=bias, dtype=dtype)
    h = torch.cat([p.h, torch.ones(n, 1)], 1) if bias else p.h
    close = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(sums.gram.double(), h.mT @ (p.w[:, None] * h), rtol=close, atol=close * n * 100)
    torch.testing.assert_close(sums.cross, h.mT @ (p.w[:, None] * p.r), rtol=close, atol=close * n * 100)
    assert sums.energy == pytest.approx(float((p.w * p.r.square().sum(1)).sum()), rel=close)
    assert torch.equal(sums.gram, sums.gram.mT)
    assert sums.count == int((p.w > 0).sum())


@given(cuts=st.lists(st.integers(0, 30), max_size=4), bias=st.booleans(), read=st.booleans())
def test_parts_add_up(cuts: list[int], bias: bool, read: bool) -> None:
    p = problem(30, 8, 3, zeros=0.2)
    parts = [p.part(a, b).sums(bias=bias) for a, b in itertools.pairwise([0, *sorted(cuts), 30])]
    if read:  # reading G, which mirrors it, changes nothing of what is added later
        assert all(part.gram.shape == (8 + bias, 8 + bias) for part in parts)
    joint, merged = p.sums(bias=bias), parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert distance(merged.gram, joint.gram) < 1e-13
    assert distance(merged.cross, joint.cross) < 1e-13
    assert merged.energy == pytest.approx(joint.energy, rel=1e-13)
    assert (merged.count, merged.dropped) == (joint.count, joint.dropped)


def test_merging_leaves_the_other_sums_alone() -> None:
    a, b = problem(10, 4, 2).sums(), problem(10, 4, 2, seed=1).sums()
    expected, before = a.gram + b.gram, b.gram.clone()
    a.merge(b)
    assert torch.equal(b.gram, before)
    assert torch.equal(a.gram, expected)


@given(n=st.integers(1, 23), f=st.integers(1, 10), d=st.integers(1, 4), bias=st.booleans())
def test_error_is_the_error(n: int, f: int, d: int, bias: bool) -> None:
    p = problem(n, f, d, zeros=0.3)
    generator = torch.Generator().manual_seed(n)
    change = torch.randn(d, f, generator=generator, dtype=torch.float64)
    offset = torch.randn(d, generator=generator, dtype=torch.float64) if bias else None
    assert p.sums(bias=bias).error(change, offset) == pytest.approx(p.error(change, offset), rel=1e-10)
    assert p.sums(bias=bias).error(change * 0) == pytest.approx(p.error(change * 0), rel=1e-10)


def test_error_keeps_its_digits_in_float32() -> None:
    """What is left is 1e-4 of the energy here, and still has three digits."""
    p = problem(4000, 12, 3, noise=0.04)
    change = torch.linalg.lstsq(p.h, p.r).solution.mT
    sums = p.sums(dtype=torch.float32)
    assert p.error(change) < 1e-3 * sums.energy
    assert sums.error(change) == pytest.approx(p.error(change), rel=1e-3)


def test_many_chunks_keep_float32s_digits() -> None:
    p = problem(6000, 16, 1)
    wide, narrow = p.sums(), p.sums(dtype=torch.float32)  # 1200 chunks
    assert distance(narrow.gram, wide.gram) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("where", ["activations", "residuals", "weights"])
def test_tokens_that_are_not_finite_weigh_nothing(bad: float, where: str) -> None:
    """1e30 overflows as a square in float32, except as a weight, where -1 stands in."""
    p = problem(12, 4, 2)
    h, r, w = p.h.float(), p.r.float(), p.w.float()
    {"activations": h[:, 1], "residuals": r[:, 1], "weights": w}[where][7] = (
        -1.0 if where == "weights" and bad == 1e30 else bad
    )
    sums = NormalEquations(4, 2)
    sums.add(h, r, w)
    kept = torch.arange(12) != 7
    expected = NormalEquations(4, 2)
    expected.add(p.h[kept], p.r[kept], p.w[kept])
    assert torch.allclose(sums.gram, expected.gram)
    assert torch.allclose(sums.cross, expected.cross)
    assert sums.energy == pytest.approx(expected.energy, rel=1e-6)
    assert (sums.count, sums.dropped) == (11, 1)
    assert sums.finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_activations_are_summed_in_wide(dtype: torch.dtype) -> None:
    p = problem(40, 6, 2)
    h, r = p.h.to(dtype), p.r.to(dtype)
    sums = NormalEquations(6, 2)
    sums.add(h, r)
    assert distance(sums.gram, h.double().mT @ h.double()) < 1e-6


def test_shapes_that_do_not_fit_are_refused() -> None:
    sums = NormalEquations(4, 2)
    for h, r in (((3, 5), (3, 2)), ((3, 4), (3, 3)), ((3, 4), (4, 2))):
        with pytest.raises(ValueError, match="expected"):
            sums.add(torch.zeros(h), torch.zeros(r))
    with pytest.raises(ValueError, match="width 4"):
        sums.merge(NormalEquations(4, 2, bias=True))
    with pytest.raises(ValueError, match="no bias"):
        sums.error(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="float32 or float64"):
        NormalEquations(4, 2, dtype=torch.bfloat16)


def test_product_of_several() -> None:
    a, b = problem(9, 7, 2).sums(), problem(9, 7, 2, seed=1).sums()
    x = problem(7, 3, 1).h
    assert distance(product([a.gram, b.gram], x), (a.gram + b.gram) @ x) < 1e-14


def test_memory_is_that_of_the_sums() -> None:
    assert normal_equations_bytes(10_000, 576) == 4 * 10_000**2 + 8 * 10_000 * 576
    assert normal_equations_bytes(10_000, 576, torch.float64) == 8 * 10_000**2 + 8 * 10_000 * 576
