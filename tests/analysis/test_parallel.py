"""The group search against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import make_evidence
from makers import block_spec

from ffn_fusion.analysis.evidence import Matrix
from ffn_fusion.analysis.parallel import ParallelBlocks, parallel_blocks, parallel_blocks_of
from ffn_fusion.errors import DataError, UsageError

nan = float("nan")


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    """M of up to 9 blocks: few different values, so that there are ties, and gaps."""
    blocks = draw(st.integers(1, 9))
    values = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, nan])
    entries = draw(st.lists(values, min_size=blocks**2, max_size=blocks**2))
    return np.array(entries).reshape(blocks, blocks)


def numbers(matrix: Matrix, first: int, size: int) -> list[float]:
    """The measured entries above the diagonal among these blocks."""
    inside = range(first, first + size)
    return [matrix[i, j] for i in inside for j in inside if j > i and not np.isnan(matrix[i, j])]


@given(matrices(), st.integers(2, 5), st.sets(st.integers(0, 8), max_size=2))
def test_every_step_takes_the_best_window_left(matrix: Matrix, size: int, exclude: set[int]) -> None:
    found = parallel_blocks(matrix, size, exclude=exclude)
    free = set(range(len(matrix))) - exclude
    for group in found:
        left = [
            (max(values), sum(values), first)
            for first in range(len(matrix))
            if set(range(first, first + size)) <= free and (values := numbers(matrix, first, size))
        ]
        assert (group.m_max, group.m_sum, group.first) == min(left)
        assert group.last == group.first + size - 1
        free -= set(range(group.first, group.last + 1))
    assert not [
        first
        for first in range(len(matrix))
        if set(range(first, first + size)) <= free and numbers(matrix, first, size)
    ]
    for count in range(len(found) + 1):
        assert parallel_blocks(matrix, size, count, exclude) == found[:count]


def test_the_largest_dependency_goes_before_the_sum() -> None:
    matrix = np.full((6, 6), nan)
    matrix[0, 1], matrix[2, 3], matrix[4, 5] = 0.3, 0.2, 0.4
    assert [w.first for w in parallel_blocks(matrix, 2)] == [2, 0, 4]
    matrix[np.triu_indices(6, k=1)] = 0.2
    matrix[0, 1] = 0.1  # the same maximum everywhere: the sum decides
    assert parallel_blocks(matrix, 3) == (
        ParallelBlocks(0, 2, 0.2, pytest.approx(0.5)),
        ParallelBlocks(3, 5, 0.2, pytest.approx(0.6)),
    )


def test_only_whole_blocks_are_in_a_window_of_a_model() -> None:
    evidence = make_evidence(9)
    blocks = list(evidence.parent.blocks)
    blocks[2] = block_spec(attention=None, ffn="gated", ffn_width=48)
    blocks[5] = block_spec(attention="attention", ffn=None, ffn_width=0)
    parent = evidence.parent.model_copy(update={"blocks": tuple(blocks)})
    matrix = np.full((9, 9), 0.5).tolist()
    measured = evidence.model_copy(update={"parent": parent, "matrices": {"block.mean": matrix}})
    assert [(w.first, w.last) for w in parallel_blocks_of(measured, 2)] == [(0, 1), (3, 4), (6, 7)]
    assert [(w.first, w.last) for w in parallel_blocks_of(measured, 3, count=1)] == [(6, 8)]
    assert parallel_blocks_of(measured) == ()


def test_mistakes() -> None:
    with pytest.raises(DataError, match="no block dependency"):
        parallel_blocks_of(make_evidence(4))
    with pytest.raises(UsageError, match="group of 1"):
        parallel_blocks(np.zeros((4, 4)), 1)
