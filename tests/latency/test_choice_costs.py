"""Costs of choices: sums over a model are the model's own, and a choice takes what its child takes less of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from makers import nas_config, write_model

from ffn_fusion.blueprint import Parent
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import DataError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.layout import block_parameters
from ffn_fusion.latency.choice_costs import Measured, Modelled, costs_of, timed_model
from ffn_fusion.latency.hardware import step_seconds
from ffn_fusion.latency.machines import find_machine
from ffn_fusion.latency.sub_block_costs import SubBlocks, SubBlockTiming, distinct_shapes
from ffn_fusion.latency.timing import Phase, Roofline, Work
from ffn_fusion.latency.work import Setting, Step
from ffn_fusion.puzzle.settings import SpaceSettings
from ffn_fusion.puzzle.space import Entry, make_space
from ffn_fusion.search.table import CostRow, read_costs, write_costs

BLOCKS = [(2, 256), (4, 256), (4, 512), (4, 256), (None, 256)]
SCENARIOS = [(1, 128), (8, 64)]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    config = nas_config(BLOCKS, hidden_size=64, head_dim=32)
    return open_folder(write_model(tmp_path_factory.mktemp("costs") / "model", config, BLOCKS).folder).spec


@pytest.fixture(scope="module")
def parent(spec: ModelSpec) -> Parent:
    return spec.parent("parent")


@pytest.fixture(scope="module")
def entries(spec: ModelSpec) -> Sequence[Entry]:
    asked = SpaceSettings(max_run=3, max_side_by_side=2)
    return make_space(spec, asked).entries


def timings(spec: ModelSpec, dtype: str = "float32") -> SubBlocks:
    """Made-up seconds, other for every shape, phase and scenario."""
    each = [
        SubBlockTiming(
            shape=shape, phase=phase, batch=batch, context=context, copies=1, rounds=1,
            median_s=(k + 1) * 1e-3 + batch * 1e-5 + context * 1e-6 * (2 if phase == "prefill" else 1),
            p10_s=0, p90_s=0, work=Work(weight_bytes=1, kv_bytes=0, flops=1), limit_share=1, limited_by="bandwidth",
        )
        for k, (shape, _) in enumerate(distinct_shapes([spec]))
        for phase in PHASES
        for batch, context in SCENARIOS
    ]  # fmt: skip
    roofline = Roofline(bytes_per_second=1, flops_per_second=1)
    return SubBlocks(
        engine="made up", machine="none", threads=1, dtype=dtype, cuda_graph=False, roofline=roofline,
        timings=tuple(each),
    )  # fmt: skip


def model_rows(rows: Sequence[CostRow], batch: int, context: int) -> list[CostRow]:
    """The rows of the parent as it is."""
    return [r for r in rows if r.choice in ("kept", "rest") and (r.batch, r.context) == (batch, context)]


def test_sums_are_the_models_own(spec: ModelSpec, parent: Parent, entries: Sequence[Entry]) -> None:
    measured = timings(timed_model(spec, entries))
    rows = costs_of(spec, parent, entries, Measured(measured))
    assert len(rows) == len(SCENARIOS) * (len(entries) + 9 + 1)
    for batch, context in SCENARIOS:
        of = model_rows(rows, batch, context)
        inside = sum(block_parameters(spec, i) for i in range(5))
        outside = (2 - spec.tied) * spec.vocab_size * spec.hidden_size + spec.hidden_size
        assert sum(row.parameters or 0 for row in of) == inside + outside
        assert sum(row.weight_bytes or 0 for row in of) == 4 * (inside + outside)
        assert sum(row.kv_bytes or 0 for row in of) == spec.kv_bytes_per_token(4)
        assert sum(row.steps or 0 for row in of) == 9
        assert sum(r.prefill_seconds or 0 for r in of) == pytest.approx(
            measured.seconds(spec, "prefill", batch, context)
        )
        assert sum(r.decode_seconds or 0 for r in of) == pytest.approx(measured.seconds(spec, "decode", batch, context))


def test_modelled_sums_are_the_models_own(spec: ModelSpec, parent: Parent, entries: Sequence[Entry]) -> None:
    machine, setting = find_machine("h100"), Setting(devices=2, weights="fp8", kv="bf16")
    rows = costs_of(spec, parent, entries, Modelled(machine, setting, SCENARIOS))
    for batch, context in SCENARIOS:
        of, here = model_rows(rows, batch, context), replace(setting, batch=batch, context=context)
        for name, step in (("prefill_seconds", Step(tokens=context)), ("decode_seconds", Step(past=context))):
            whole = step_seconds(machine, spec, here, step).total
            assert sum(getattr(row, name) for row in of) == pytest.approx(whole)
        assert sum(row.kv_bytes or 0 for row in of) == spec.kv_bytes_per_token(2)
        rest = next(row for row in of if row.choice == "rest")
        assert rest.weight_bytes == 2 * (rest.parameters or 0)  # the head keeps 16 bits
        assert all(row.weight_bytes == row.parameters for row in of if row is not rest)


def test_a_choice_takes_what_its_child_does(spec: ModelSpec, parent: Parent, entries: Sequence[Entry]) -> None:
    """Of every entry: the whole parent, less what is replaced, plus the entry, is the child's own sum."""
    measured = timings(timed_model(spec, entries))
    rows = [row for row in costs_of(spec, parent, entries, Measured(measured)) if row.batch == 8]
    kept = {(row.first_block, row.part): row for row in rows if row.choice == "kept"}
    found = {(row.first_block, row.last_block, row.part, row.choice): row for row in rows}
    assert {entry.part for entry in entries} == {"attention", "ffn", "block"}
    for entry in entries:
        replaced = [
            kept[i, part]
            for i in range(entry.first, entry.last + 1)
            for part in ("attention", "ffn")
            if entry.part in ("block", part) and (i, part) in kept
        ]
        row = found[entry.first, entry.last, entry.part, entry.choice]
        child = child_spec(spec, entry.blueprint(parent), 256)
        for phase in PHASES:
            name = f"{phase}_seconds"
            summed = measured.seconds(spec, phase, 8, 64) - sum(getattr(r, name) for r in replaced) + getattr(row, name)
            assert summed == pytest.approx(measured.seconds(child, phase, 8, 64))
        kv = spec.kv_bytes_per_token(4) - sum(r.kv_bytes or 0 for r in replaced) + (row.kv_bytes or 0)
        assert kv == child.kv_bytes_per_token(4)


def test_the_table_is_read_back(spec: ModelSpec, parent: Parent, entries: Sequence[Entry], tmp_path: Path) -> None:
    rows = costs_of(spec, parent, entries, Measured(timings(timed_model(spec, entries), "bfloat16")))
    write_costs(tmp_path / "costs.csv", rows)
    assert read_costs(tmp_path / "costs.csv") == rows


def test_a_shape_that_was_not_timed(spec: ModelSpec, parent: Parent, entries: Sequence[Entry]) -> None:
    with pytest.raises(DataError, match=r"was not timed in a prefill of batch 1 and context 128") as missing:
        costs_of(spec, parent, entries, Measured(timings(spec)))
    assert "bench MODEL --sub-blocks" in missing.value.hint
