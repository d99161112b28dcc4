"""What another fate would have cost, against every possible plan."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from every_plan import damage_of, every_plan, random_evidence, size_of
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.analysis.counterfactual import least_damage
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.explanation import Instead
from ffn_fusion.analysis.runs import Move, possible_moves


def has_fate(plan: list[Move], block: int, instead: Instead) -> bool:
    dropped = {i for move in plan for i in move.dropped}
    fused = {i for move in plan for first, last in move.pieces for i in range(first, last + 1)}
    return {
        "dropped": block in dropped,
        "kept": block not in dropped,
        "fused": block in fused,
        "unfused": block not in fused,
    }[instead]


@given(random_evidence(), st.data())
def test_the_least_of_every_plan_with_that_fate(evidence: Evidence, data: st.DataObject) -> None:
    blocks = len(evidence.parent.blocks)
    moves = possible_moves(evidence, 9, None)
    plans = list(every_plan(blocks, moves))
    size = data.draw(st.sampled_from(sorted({size_of(plan) for plan in plans})))
    block = data.draw(st.integers(0, blocks - 1))
    for instead in get_args(Instead):
        fitting = [plan for plan in plans if size_of(plan) == size and has_fate(plan, block, instead)]
        found = least_damage(blocks, moves, size, block, instead)
        assert (found is not None) == bool(fitting)
        if found is not None:
            assert found.damage == pytest.approx(min(map(damage_of, fitting), default=np.inf), abs=1e-9)
            assert has_fate(list(found.moves), block, instead)
            assert size_of(found.moves) == size
