"""What another fate would have cost, against every possible plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from every_plan import damage_of, every_plan, random_evidence, size_of
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.analysis.choices import choices_of
from ffn_fusion.analysis.counterfactual import least_damage
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.explanation import Instead
from ffn_fusion.blueprint.choices import Choice


def has_fate(plan: Sequence[Choice], block: int, instead: Instead) -> bool:
    dropped = {i for choice in plan for i in choice.dropped}
    fused = {i for choice in plan for first, last in choice.runs for i in range(first, last + 1)}
    return {
        "dropped": block in dropped,
        "kept": block not in dropped,
        "fused": block in fused,
        "unfused": block not in fused,
    }[instead]


@given(random_evidence(), st.data())
def test_the_least_of_every_plan_with_that_fate(evidence: Evidence, data: st.DataObject) -> None:
    blocks = len(evidence.parent.blocks)
    table = choices_of(evidence, 9)
    plans = list(every_plan(table))
    size = data.draw(st.sampled_from(sorted({size_of(plan) for plan in plans})))
    block = data.draw(st.integers(0, blocks - 1))
    for instead in get_args(Instead):
        fitting = [plan for plan in plans if size_of(plan) == size and has_fate(plan, block, instead)]
        found = least_damage(table, size, block, instead)
        assert (found is not None) == bool(fitting)
        if found is not None:
            assert found.score == pytest.approx(min(map(damage_of, fitting), default=np.inf), abs=1e-9)
            assert has_fate(found.choices, block, instead)
            assert size_of(found.choices) == size
