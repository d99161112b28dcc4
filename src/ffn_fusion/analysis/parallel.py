"""Which consecutive whole blocks could be computed side by side: the group search of arXiv 2503.18908.

The paper parallelises windows of 4 blocks that keep their attention. Of a group's submatrix of the block dependency
matrix M it takes the maximum M_max and the sum M_sum; greedily, the group of least M_max is next (ties: least M_sum),
and groups that overlap it are out. M[i, j]: cosine distance, how much block j's contribution turns without block i.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ffn_fusion.analysis.evidence import Evidence, Matrix
from ffn_fusion.errors import DataError, UsageError


@dataclass(frozen=True)
class ParallelBlocks:
    """Blocks first..last, and the maximum and the sum of the dependencies among them."""

    first: int
    last: int
    m_max: float
    m_sum: float


def parallel_blocks(
    matrix: Matrix, size: int = 4, count: int | None = None, exclude: Collection[int] = ()
) -> tuple[ParallelBlocks, ...]:
    """Disjoint groups of blocks that depend little on one another, the least dependent first.

    Args:
        matrix: M [L, L]; only its upper triangle is read (j > i), NaN (not measured) is ignored.
        size: blocks in a group, 2 or more.
        count: how many groups at most; None for all.
        exclude: blocks that may not be in a group.

    Returns:
        A group of which nothing was measured is never among them. Equally good groups: the first one.

    Raises:
        UsageError: ``size`` is below 2.
    """
    if size < 2:
        raise UsageError(f"a group of {size} has nothing to compute side by side", "give a size of 2 or more")
    found: list[ParallelBlocks] = []
    left = sorted(
        (group for first in range(len(matrix) - size + 1) if (group := _group(matrix, first, size, exclude))),
        key=lambda group: (group.m_max, group.m_sum, group.first),
    )
    while left and (count is None or len(found) < count):
        best = left[0]
        found.append(best)
        left = [group for group in left if group.last < best.first or group.first > best.last]
    return tuple(found)


def parallel_blocks_of(evidence: Evidence, size: int = 4, count: int | None = None) -> tuple[ParallelBlocks, ...]:
    """The same for a measured model: only blocks with an attention and an FFN can be in a group.

    Raises:
        DataError: block dependency wasn't measured.
        UsageError: ``size`` is below 2.
    """
    if "block.mean" not in evidence.matrices:
        raise DataError("the evidence holds no block dependency", "measure it with `ffn-fusion analyze`")
    lacking = {i for i, block in enumerate(evidence.parent.blocks) if not (block.attention and block.ffn)}
    return parallel_blocks(evidence.dependency("block"), size, count, lacking)


def _group(matrix: Matrix, first: int, size: int, exclude: Collection[int]) -> ParallelBlocks | None:
    blocks = range(first, first + size)
    among = matrix[first : first + size, first : first + size][np.triu_indices(size, k=1)]
    measured = among[~np.isnan(among)]
    if not len(measured) or any(block in exclude for block in blocks):
        return None
    return ParallelBlocks(blocks[0], blocks[-1], float(measured.max()), float(measured.sum()))
