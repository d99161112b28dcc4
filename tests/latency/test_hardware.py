"""The model of a machine: sums made by hand on a machine of round numbers, and what must hold on any."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.errors import UsageError
from ffn_fusion.families import FfnSpec
from ffn_fusion.families.pattern import pattern_spec
from ffn_fusion.latency.hardware import (
    USABLE_MEMORY,
    check_setting,
    decode_step,
    predict,
    step_seconds,
    sub_block_seconds,
    work_seconds,
)
from ffn_fusion.latency.machines import AllReduce, Machine, shipped_machines
from ffn_fusion.latency.work import Setting, Step, SubBlockWork

SPEC = pattern_spec([(2, 96), (None, 160), (2, 96)], hidden_size=64, heads=8, vocab_size=100)
PLAIN = Machine(
    name="plain",
    memory=1e6,
    bandwidth=1000.0,
    flops={"bf16": 1e6},
    memory_efficiency=0.5,
    compute_efficiency=0.1,
    attention_seconds=0.3,
    ffn_seconds=0.2,
    linear_seconds=0.1,
    step_seconds=0.05,
    sync_seconds=0.01,
    all_reduces=(AllReduce(latency=0.02, seconds_per_byte=1e-4),),
    max_devices=8,
)


def work(**changes: float) -> SubBlockWork:
    empty = SubBlockWork("attention", 0, 0, 0, 0, 0, 0, "bf16", "bf16")
    return replace(empty, **changes)  # type: ignore[arg-type]


def test_one_sub_block_by_hand() -> None:
    """1000 bytes/s reached to a half, a million FLOP/s reached to a tenth."""
    found = work_seconds(PLAIN, work(weight_bytes=400, activation_bytes=100, kv_bytes=50, all_reduce_bytes=100), 2)
    assert asdict(found) == pytest.approx(
        {"weights": 1.0, "kv": 0.1, "arithmetic": 0, "launches": 0.3, "all_reduces": 0.04}
    )
    assert found.total == pytest.approx(1.44)


def test_the_larger_of_reading_and_computing_counts_for_each_kernel() -> None:
    found = work_seconds(PLAIN, work(weight_bytes=500, matmul_flops=3e5, kv_bytes=500, attention_flops=1e5))
    assert (found.weights, found.kv, found.arithmetic) == (0, 1.0, pytest.approx(3.0))
    found = work_seconds(PLAIN, work(weight_bytes=500, matmul_flops=0.5e5, kv_bytes=500, attention_flops=2e5))
    assert (found.weights, found.kv, found.arithmetic) == (1.0, 0, pytest.approx(2.0))


def test_a_step_is_the_sum_of_its_sub_blocks_and_the_head() -> None:
    setting, step = Setting(devices=2), Step(1, 30)
    parts = [part for block in SPEC.blocks for part in (block.attention, block.ffn) if part]
    each = sum(sub_block_seconds(PLAIN, SPEC, part, setting, step).total for part in parts)
    whole = step_seconds(PLAIN, SPEC, setting, step).total
    head = (100 * 64 / 2 * 2 + (64 + 50) * 2) / 500 + 0.05 + 0.01 + 0.02 + 64 * 2 * 1e-4
    assert whole == pytest.approx(each + head)


def test_the_mean_decode_step_stands_for_all_of_them() -> None:
    setting = Setting(context=10, new_tokens=7)
    each = [step_seconds(PLAIN, SPEC, setting, Step(1, 10 + i)).total for i in range(7)]
    assert predict(PLAIN, SPEC, setting).token == pytest.approx(sum(each) / 7)


def test_what_fusing_saves() -> None:
    """Two FFNs side by side: one fixed part, one all-reduce and one norm's bytes less."""
    setting = Setting(devices=2)
    one, wide = (sub_block_seconds(PLAIN, SPEC, FfnSpec("gated", width), setting).total for width in (96, 192))
    activations = 2 * 64 * 2
    saved = 0.2 + 0.01 + 0.02 + 64 * 2 * 1e-4 + (64 / 2 * 2 + activations) / 500
    assert 2 * one - wide == pytest.approx(saved)


def test_speeds() -> None:
    found = predict(PLAIN, SPEC, Setting(batch=4, context=6, new_tokens=8))
    assert found.tokens_per_second == pytest.approx(1 / found.token)
    assert found.decode_throughput == pytest.approx(4 / found.token)
    assert found.throughput == pytest.approx(32 / (found.time_to_first_token + 8 * found.token))


def test_memory() -> None:
    setting = Setting(context=100, new_tokens=50)
    found = predict(PLAIN, SPEC, setting)
    exact = PLAIN.model_copy(update={"memory": (found.weight_bytes + found.kv_bytes) / USABLE_MEMORY * 1.0001})
    assert predict(exact, SPEC, setting).fits
    assert not predict(exact, SPEC, replace(setting, batch=2)).fits


@pytest.mark.parametrize("name", shipped_machines())
@given(
    st.integers(1, 64), st.integers(1, 4096), st.sampled_from(["bf16", "fp8", "int4"]), st.sampled_from([1, 2, 4, 8])
)
def test_more_never_takes_less(name: str, batch: int, context: int, weights: str, devices: int) -> None:
    machine = shipped_machines()[name]
    setting = Setting(min(devices, machine.max_devices), batch, context, 16, weights)
    found = predict(machine, SPEC, setting)
    for more in ({"batch": batch + 1}, {"context": context + 64}, {"kv": "fp32"}):
        other = predict(machine, SPEC, replace(setting, **more))  # type: ignore[arg-type]
        assert other.token >= found.token
        assert other.time_to_first_token >= found.time_to_first_token
    faster = machine.model_copy(update={"bandwidth": machine.bandwidth * 2})
    assert found.token / 2 < predict(faster, SPEC, setting).token < found.token


def test_devices_that_cannot_share() -> None:
    with pytest.raises(UsageError, match="8 heads can't be shared evenly by 3"):
        check_setting(PLAIN, SPEC, Setting(devices=3))
    with pytest.raises(UsageError, match="at most 1"):
        check_setting(PLAIN.model_copy(update={"all_reduces": ()}), SPEC, Setting(devices=2))


def test_decode_step_of_several_tokens() -> None:
    assert decode_step(Setting(context=10, new_tokens=5), 4) == Step(4, 12, 4)
