"""Models in turn, and the figures that are made of their runs."""

from __future__ import annotations

import pytest
from makers import llama_config

from ffn_fusion.families import read_spec
from ffn_fusion.latency.interleave import Measurement, Workload, interleave
from ffn_fusion.latency.summary import figures, timings_of
from ffn_fusion.latency.timing import Latency, Roofline
from ffn_fusion.latency.traffic import Traffic

WORKLOAD = Workload(batch=2, context=8, new_tokens=4)
TRAFFIC = Traffic.of(read_spec(llama_config()), 4)


class Machine:
    """Is slower from run to run, as if another used it; so ratios mean something only inside a round."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.load = 1.0


class Model:
    def __init__(self, name: str, cost: float, machine: Machine) -> None:
        self.name, self.cost, self.machine = name, cost, machine

    def warm_up(self, workload: Workload) -> int | None:
        self.machine.log.append(f"warm {self.name}")
        return 1000

    def run(self, workload: Workload) -> Measurement:
        self.machine.log.append(self.name)
        if len(self.machine.log) % 2:
            self.machine.load *= 3
        return Measurement(self.cost * self.machine.load, 2 * self.cost * self.machine.load)


def test_every_round_runs_all_another_first() -> None:
    machine = Machine()
    models = {name: Model(name, 1, machine) for name in "abc"}
    interleave(models, [WORKLOAD], 3, lambda *words: None)
    assert machine.log == ["warm a", "warm b", "warm c", *"bca", *"cab", *"abc"]


def test_progress_ends_at_its_total() -> None:
    told: list[tuple[int, int]] = []
    models = {name: Model(name, 1, Machine()) for name in "ab"}
    workloads = [WORKLOAD, Workload(1, 8, 4)]
    interleave(models, workloads, 3, lambda what, done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]


@pytest.fixture
def latency() -> Latency:
    machine = Machine()
    models = {"slow": Model("slow", 1.5, machine), "fast": Model("fast", 1.0, machine)}
    runs = interleave(models, [WORKLOAD], 4, lambda *words: None)
    roofline = Roofline(bytes_per_second=1e5, flops_per_second=1e12)
    timings = timings_of(runs, {"fast": TRAFFIC}, roofline)
    return Latency(
        engine="e", machine="m", threads=1, dtype="float32", models=tuple(models), timings=timings, roofline=roofline
    )


def test_ratios_are_taken_inside_a_round(latency: Latency) -> None:
    fast, slow = latency.get("fast", "decode", 2), latency.get("slow", "decode", 2)
    assert fast.speedup["slow"] == pytest.approx(1.5)
    assert slow.speedup["fast"] == pytest.approx(1 / 1.5)
    assert fast.p10_s < fast.median_s < fast.p90_s
    assert [(t.model, t.phase) for t in latency.timings] == [
        (model, phase) for model in ("slow", "fast") for phase in ("prefill", "decode")
    ]


def test_shares_of_the_limits(latency: Latency) -> None:
    fast = latency.get("fast", "decode", 2)
    work = TRAFFIC.step(2, 8 + 2.5)  # tokens 9 to 12 look at 9 to 12 tokens
    assert fast.work == work
    assert fast.limited_by == "bandwidth"
    assert fast.limit_share == pytest.approx(4 * work.moved_bytes / 1e5 / fast.median_s)
    assert latency.get("slow", "decode", 2).limit_share is None


def test_figures_are_of_a_token(latency: Latency) -> None:
    slow, fast = figures(latency)
    decode = latency.get("fast", "decode", 2)
    assert (slow["model"], fast["model"]) == ("slow", "fast")
    assert fast["time_per_output_token_s"]["median"] == pytest.approx(decode.median_s / 4)
    assert fast["tokens_per_second"] == pytest.approx(2 * 4 / decode.median_s)
    assert fast["bytes_per_token"] == pytest.approx(TRAFFIC.step(2, 10.5).moved_bytes / 2)
    assert fast["peak_memory_bytes"] == 1000


def test_read_back_from_json(latency: Latency) -> None:
    assert Latency.model_validate_json(latency.model_dump_json()) == latency
