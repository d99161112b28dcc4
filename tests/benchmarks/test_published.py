"""Published models are what they're said to be, and the shipped H100 is the one that was fitted to their speeds."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.families.layout import model_tensors
from ffn_fusion.families.pattern import pattern_spec
from ffn_fusion.latency.hardware import USABLE_MEMORY, predict
from ffn_fusion.latency.machines import Machine, find_machine
from ffn_fusion.latency.speculative import Draft, predict_drafted
from ffn_fusion.latency.work import Setting

ROOT = Path(__file__).parents[2]


def parameters(spec: Any) -> float:
    return sum(prod(shape) for shape in model_tensors(spec).values()) / 1e9


def test_sizes() -> None:
    from published import published_spec

    stated = {
        "Llama-3.1-405B": 405.85, "Llama-3.3-70B": 70.55, "Ultra-253B": 253.40, "Super-49B": 49.87,
        "Nemotron-51B": 51.50, "Llama-3.2-1B": 1.24,
    }  # fmt: skip
    for name, billions in stated.items():
        assert parameters(published_spec(name)) == pytest.approx(billions, abs=0.01), name


def test_the_unfused_ultra() -> None:
    """49 FFNs for four, which together are as wide; the 405B's 126 layers, of which 64 keep their attention."""
    from published import published_spec

    unfused, fused = published_spec("unfused"), published_spec("Ultra-253B")
    assert len(unfused.blocks) == 126
    assert len(unfused.blocks) - len(fused.blocks) == 49 - 4
    assert sum(block.attention is not None for block in unfused.blocks) == 64

    def widths(spec: Any) -> int:
        return sum(block.ffn.width for block in spec.blocks)

    assert widths(unfused) == widths(fused)


def test_goals_hold_and_shipped_constants_are_the_fitted_ones() -> None:
    import hardware

    figures = {**hardware.fitted(), **hardware.elsewhere(), **hardware.throughput()}
    assert {name: figures[name] for name, goal in hardware.GOALS.items() if figures[name] > goal} == {}
    for name in hardware.FREE:
        assert getattr(find_machine("h100"), name) == pytest.approx(figures[f"fitted: {name}"], rel=0.005)


def test_the_fit_feels_the_published_speeds() -> None:
    """A fit that gave the same constants for other speeds would be none."""
    from dataclasses import replace

    import hardware
    from published import observations

    slower = [replace(one, seconds=one.seconds * 1.2) for one in observations("h100")]
    found = hardware.fit_machine(hardware.start(), slower, hardware.FREE, goal="largest").machine
    assert found.sync_seconds > 2 * find_machine("h100").sync_seconds


@given(st.integers(1, 8), st.floats(0.01, 0.99))
def test_implied_acceptance_is_the_inverse(length: int, acceptance: float) -> None:
    from hardware import implied_acceptance

    big = pattern_spec([(8, 28672)] * 8, hidden_size=8192, heads=64, vocab_size=128256)
    small = pattern_spec([(8, 2048)] * 4, hidden_size=1024, heads=16, vocab_size=128256)
    machine, setting, draft = (
        find_machine("h100"),
        Setting(context=256, new_tokens=64),
        Draft(small, length, acceptance),
    )
    speed = predict_drafted(machine, big, setting, draft).tokens_per_second
    assert implied_acceptance(machine, big, setting, draft, speed) == pytest.approx(acceptance, abs=1e-6)
    assert implied_acceptance(machine, big, setting, draft, 100 * speed) is None


def test_the_largest_batch_is_of_half_written_sequences() -> None:
    from hardware import largest_batch

    spec = pattern_spec([(2, 96), (None, 160), (2, 96)], hidden_size=64, heads=8, vocab_size=100)
    setting, plain = (
        Setting(context=100, new_tokens=50),
        Machine(name="m", memory=1e6, bandwidth=1e3, flops={"bf16": 1}),
    )

    def batch(memory: float) -> int:
        return largest_batch(plain.model_copy(update={"memory": memory}), spec, setting)

    found = predict(plain, spec, setting)
    assert batch((found.weight_bytes + found.kv_bytes) / USABLE_MEMORY * 1.0001) == 1  # two don't fit even half written
    assert batch((found.weight_bytes + found.kv_bytes * 10) / USABLE_MEMORY) == 12  # 125 of 150 tokens each
    assert batch(10.0) == 0


def test_kept_measurements_of_the_gpu_are_the_shipped_ones() -> None:
    kept = _kept("h100")
    machine = find_machine("h100")
    assert machine.attention_seconds * 1e6 == pytest.approx(kept["attention fixed us"], abs=0.1)
    assert machine.ffn_seconds * 1e6 == pytest.approx(kept["ffn fixed us"], abs=0.1)
    efficiency = [kept[f"bf16 TFLOP/s, {n} rows"] * 1e12 / machine.flops["bf16"] for n in (1024, 4096)]
    assert min(efficiency) < machine.compute_efficiency < max(efficiency)
    assert kept["matrix-vector TB/s"] * 1e12 / machine.bandwidth < machine.memory_efficiency


def test_the_h200_is_an_h100_that_reads_faster() -> None:
    """Its overheads, which nothing was fitted to, are within a fifth of the H100's that it's given."""
    kept, machine = _kept("h200"), find_machine("h200")
    assert machine.attention_seconds * 1e6 == pytest.approx(kept["attention fixed us"], rel=0.2)
    assert machine.ffn_seconds * 1e6 == pytest.approx(kept["ffn fixed us"], rel=0.2)
    assert machine.memory_efficiency == pytest.approx(kept["matrix-vector TB/s"] * 1e12 / machine.bandwidth, rel=0.1)


def test_the_cpu_is_the_one_that_was_kept() -> None:
    kept = json.loads((ROOT / "docs" / "results" / "hardware_cpu.json").read_text(encoding="utf-8"))["figures"]
    machine = find_machine("cpu")
    assert machine.bandwidth == pytest.approx(kept["read GB/s"] * 1e9, rel=0.001)
    for name in machine.fitted:
        assert getattr(machine, name) == pytest.approx(kept[f"fitted: {name}"], rel=0.001)


def _kept(name: str) -> dict[str, float]:
    path = ROOT / "docs" / "results" / "hardware_gpu.json"
    figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))[name]["figures"]
    return figures
