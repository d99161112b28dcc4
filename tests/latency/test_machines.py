"""Machines: those that ship are whole and say where they come from; a person's own is read or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ffn_fusion.errors import UsageError
from ffn_fusion.latency.machines import AllReduce, Machine, find_machine, shipped_machines

STATED = ("memory", "bandwidth", "flops", "memory_efficiency", "compute_efficiency", "attention_seconds", "ffn_seconds",
          "linear_seconds", "step_seconds", "sync_seconds", "all_reduces")  # fmt: skip


@pytest.mark.parametrize("name", shipped_machines())
def test_every_constant_has_a_source(name: str) -> None:
    machine = find_machine(name.upper())
    assert {constant for constant in STATED if not machine.sources.get(constant)} == set()
    assert set(machine.sources) <= set(STATED)
    assert set(machine.fitted) <= set(STATED)
    assert machine.max_devices == 1 or machine.all_reduces


def test_what_was_fitted_is_said_of_that_machine_alone() -> None:
    assert find_machine("h100").source("sync_seconds").startswith("fitted: ")
    assert [name for name, machine in shipped_machines().items() if machine.fitted] == ["h100", "cpu"]
    assert not find_machine("h200").source("sync_seconds").startswith("fitted")


def test_the_fastest_way_to_reduce_counts() -> None:
    small, large = AllReduce(latency=1, per_device=0.5, seconds_per_byte=1), AllReduce(latency=9, seconds_per_byte=0.1)
    machine = Machine(name="m", memory=1, bandwidth=1, flops={"bf16": 1}, sync_seconds=2, all_reduces=(small, large))
    assert machine.all_reduce_seconds(1, 3) == 2 + 1 + 0.5 * 2 + 1
    assert machine.all_reduce_seconds(100, 3) == 2 + 9 + 10
    assert machine.all_reduce_seconds(100, 1) == 0


def test_precisions_that_are_widened() -> None:
    machine = Machine(name="m", memory=1, bandwidth=1, flops={"bf16": 7, "fp32": 3})
    assert [machine.peak(name) for name in ("fp32", "bf16", "fp8", "int4")] == [3, 7, 7, 7]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_machine_of_ones_own(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"mine.{form}"
    fields = {"memory": 8e9, "bandwidth": 5e10, "flops": {"fp32": 1e11}}
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    path.write_text(json.dumps(fields) if form == "json" else lines)
    machine = find_machine(str(path))
    assert (machine.name, machine.bandwidth, machine.max_devices) == ("mine", 5e10, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "neither YAML nor JSON"),
        ("[1]", "doesn't describe a machine"),
        ("{memory: 1, bandwidth: 1}", "flops"),
        ("{memory: 1, bandwidth: -1, flops: {}}", "bandwidth"),
        ("{memory: 1, bandwidth: 1, flops: {}}", "flops"),
        ("{memory: 1, bandwidth: 1, flops: {bf16: 0}}", "flops"),
        ("{memory: 1, bandwidth: 1, flops: {bf17: 1}}", "flops"),
        ("{memory: 1, bandwidth: 1, flops: {bf16: 1}, color: red}", "color"),
    ],
)
def test_files_that_describe_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        find_machine(str(path))


def test_unknown_machines() -> None:
    with pytest.raises(UsageError, match="isn't known") as caught:
        find_machine("h1000")
    assert "h100" in caught.value.hint
    with pytest.raises(UsageError, match="No such file"):
        find_machine("nowhere.yaml")
    with pytest.raises(UsageError, match="at most 8"):
        find_machine("a100").check_devices(9)
