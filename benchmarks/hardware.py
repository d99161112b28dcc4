"""The model of a machine against published speeds: FFN Fusion (arXiv 2503.18908) and Puzzle (arXiv 2411.19146).

fitted: two constants of the H100, on four models' tokens a second, for the least largest error; each left out in turn.
unfitted: the same with no fitted constant, all of them from data sheets and measurements (efficiency: that of a
matrix-vector product). h200: predicted with the H100's constants. fusion: pruned -> fused. draft: what acceptance the
published speed with a draft implies. throughput: as many sequences as fit, the best number of devices for each model.
Errors are predicted / published - 1, and what's fitted is checked to be what machines.yaml ships.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common import finish
from lab.fit import Bounds, Fit, Observation, errors, fit_machine, predicted
from published import CONTEXT, NEW_TOKENS, observations, published, published_spec
from scipy.optimize import brentq

from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.hardware import USABLE_MEMORY, predict
from ffn_fusion.latency.machines import Machine, find_machine
from ffn_fusion.latency.speculative import Draft, predict_drafted, tokens_per_round
from ffn_fusion.latency.work import Setting, kv_bytes, weight_bytes

MATRIX_VECTOR, READ = 0.852, 0.922  # of the data sheet's bandwidth: benchmarks/hardware_gpu.py on an H100
FREE: Bounds = {"memory_efficiency": (MATRIX_VECTOR, READ), "sync_seconds": (0.0, 1e-4)}
GOALS = {
    "largest error, fitted": 0.03,
    "largest error, left out": 0.08,
    "error on H200": 0.10,
    "error of fusion's speed-up": 0.15,
    "error of 51B / 70B throughput": 0.15,
    "fitted constants": 3,
    "shipped constants off by": 0.005,
}
LENGTHS = (2, 3, 4, 5, 6, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--folder", type=Path, help="not needed: nothing is written")
    parser.parse_args()
    figures = {**fitted(), **elsewhere(), **throughput()}
    met = all(figures[name] <= goal for name, goal in GOALS.items())
    finish("hardware", figures, GOALS, met, {"context": f"{CONTEXT} + {NEW_TOKENS}", "kv": "bf16; throughput: fp8"})


def start() -> Machine:
    """The H100 with nothing fitted."""
    return find_machine("h100").model_copy(
        update={"memory_efficiency": MATRIX_VECTOR, "sync_seconds": 0.0, "fitted": ()}
    )


def fit() -> Fit:
    return fit_machine(start(), observations("h100"), FREE, goal="largest")


def fitted() -> dict[str, float]:
    """Tokens a second of the four models, with and without fitted constants."""
    seen, found, shipped = observations("h100"), fit(), find_machine("h100")
    assert found.left_out
    bare, out = _in_speed(errors(start(), seen)), _in_speed(found.left_out)
    figures = {
        "fitted constants": float(len(FREE)),
        **{f"fitted: {name}": float(getattr(found.machine, name)) for name in FREE},
        "shipped constants off by": max(
            abs(getattr(shipped, name) / getattr(found.machine, name) - 1) for name in FREE
        ),
    }
    for i, one in enumerate(seen):
        speed = 1 / predicted(found.machine, one)
        figures |= {
            f"{one.name} | published": 1 / one.seconds,
            f"{one.name} | fitted": speed,
            f"{one.name} | error, fitted": speed * one.seconds - 1,
            f"{one.name} | error, left out": out[i],
            f"{one.name} | error, nothing fitted": bare[i],
        }
    figures["largest error, fitted"] = max(map(abs, _in_speed(found.errors)))
    figures["largest error, left out"] = max(map(abs, out))
    figures["largest error, nothing fitted"] = max(map(abs, bare))
    return figures


def _in_speed(of_times: tuple[float, ...]) -> list[float]:
    return [1 / (1 + error) - 1 for error in of_times]


def elsewhere() -> dict[str, float]:
    """What wasn't fitted on: another machine, the speed-up of fusion alone, a draft."""
    h100, h200 = find_machine("h100"), find_machine("h200")
    (ultra,) = observations("h200")
    seen = {one.name: one for one in observations("h100")}
    speed = 1 / predicted(h200, ultra)

    def ratio(above: Observation, below: Observation) -> float:
        return predicted(h100, above) / predicted(h100, below)

    fusion = ratio(seen["pruned"], seen["Ultra-253B"])
    stated = seen["pruned"].seconds / seen["Ultra-253B"].seconds
    figures = {
        "H200 | published": 1 / ultra.seconds,
        "H200 | predicted": speed,
        "error on H200": abs(speed * ultra.seconds - 1),
        "fusion | published": stated,
        "fusion | predicted": fusion,
        "error of fusion's speed-up": abs(fusion / stated - 1),
    }
    row = published()["drafted"]
    spec, draft = published_spec(row["model"]), published_spec(row["draft"])
    for length in LENGTHS:
        found = implied_acceptance(h200, spec, ultra.setting, Draft(draft, length), row["value"])
        figures[f"draft of {length} tokens: acceptance that {row['value']:g} tokens/s implies"] = found or 0.0
    return figures


def implied_acceptance(
    machine: Machine, spec: ModelSpec, setting: Setting, draft: Draft, tokens_per_second: float
) -> float | None:
    """Find the acceptance with which a draft of this length gives this speed; None if no acceptance does."""
    wanted = tokens_per_second * predict_drafted(machine, spec, setting, draft).decode.total  # tokens a round
    if not 1 <= wanted <= draft.length + 1:
        return None
    return float(brentq(lambda acceptance: tokens_per_round(draft.length, acceptance) - wanted, 0, 1))


def throughput() -> dict[str, float]:
    """Tokens a second of a device, with as many sequences as fit, on the best or the stated number of devices."""
    row = published()["throughput"]
    figures: dict[str, float] = {}
    machine = find_machine(row["machine"])
    for value in row["values"]:
        found = {n: _throughput(machine, value["model"], n, row) for n in ([1] if "devices" in value else (1, 2, 4, 8))}
        best = max(found, key=lambda n: found[n])
        figures |= {
            f"{value['name']} throughput | published": value["value"],
            f"{value['name']} throughput | predicted": found[best],
            f"{value['name']} throughput | devices": float(best),
        }
    ratio = _ratio(figures, "predicted")
    figures["51B / 70B throughput | published"] = _ratio(figures, "published")
    figures["51B / 70B throughput | predicted"] = ratio
    figures["error of 51B / 70B throughput"] = abs(ratio / _ratio(figures, "published") - 1)
    return figures


def _ratio(figures: Mapping[str, float], column: str) -> float:
    return figures[f"51B throughput | {column}"] / figures[f"70B throughput | {column}"]


def largest_batch(machine: Machine, spec: ModelSpec, setting: Setting) -> int:
    """Count the sequences that a machine can serve at once, each finished one giving its place to a new one.

    They are half written on average, and a paged cache holds no more than that of them. 0: not even one fits.
    """
    one = replace(setting, batch=1, new_tokens=-(-setting.new_tokens // 2))
    free = machine.memory * USABLE_MEMORY - weight_bytes(spec, one)
    each = kv_bytes(spec, one)
    return max(0, int(free / each)) if each else setting.batch


def _throughput(machine: Machine, model: str, devices: int, row: Mapping[str, str | int]) -> float:
    one = Setting(devices, 1, int(row["context"]), int(row["new_tokens"]), str(row["weights"]), str(row["kv"]))
    spec = published_spec(model)
    batch = largest_batch(machine, spec, one)
    return predict(machine, spec, replace(one, batch=batch)).throughput / devices if batch else 0.0


if __name__ == "__main__":
    main()
