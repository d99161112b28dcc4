"""The model of a machine on a CPU: random blueprints of SmolLM2, decoded in transformers, a third to fit on, the others
predicted.

The machine's bandwidth (a plain read) and FLOP/s (a matrix product) are the best seen in the same run; fitted are what
the engine reaches of the bandwidth and its overheads of an attention, an FFN and a step, by batch-1 decodes alone. A
child is timed in turn with the parent, and its time is taken as the parent's median over all of the run times its own
ratio to the parent, since a shared machine's speed drifts. Errors are predicted / measured - 1.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from common import finish
from lab.fit import Observation, errors, fit_machine
from random_llama import TINY, llama_config

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.random_model import write_random_model
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.errors import BlueprintError
from ffn_fusion.latency.machines import Machine
from ffn_fusion.latency.measure import bench
from ffn_fusion.latency.work import Setting
from ffn_fusion.modeling.load import realise
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.child import Child

MODEL = Path(__file__).parents[1] / ".demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GOALS = {"median error, batch 1": 0.15}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        if options.quick:
            write_random_model(Path(place) / "m", llama_config(**TINY), shard_bytes=1 << 30)
        parent = open_folder(Path(place) / "m") if options.quick else open_model(str(MODEL))
        limits = Limits(options.quick)
        seen = _measured(parent, limits, options)
    figures = _figures(seen, limits.machine(), options)
    goals = {} if options.quick else GOALS
    met = all(figures[name] <= goal for name, goal in goals.items())
    notes = {"threads": str(options.threads), "dtype": options.dtype, "rounds": str(options.rounds)}
    finish("hardware_cpu", figures, goals, met, notes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, default=10, help="blueprints to fit on")
    parser.add_argument("--predict", type=int, default=20, help="blueprints to predict")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sizes to predict; 1 is fitted on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    if options.quick:
        options.fit, options.predict, options.rounds, options.context, options.new_tokens = 5, 2, 1, 8, 2
    return options


def random_blueprint(parent: Checkpoint, chance: random.Random) -> Blueprint:
    """Attentions dropped at random, and some of the FFNs behind one another fused."""
    identity = Blueprint.identity(parent.spec.parent(parent.name))
    blocks = len(identity.parent.blocks)
    kept = set(chance.sample(range(1, blocks), chance.randint(blocks // 3, blocks - 1))) | {0}
    blueprint = identity.drop_attention([i for i in range(blocks) if i not in kept])
    first = 0
    for last in range(1, blocks + 1):  # runs that begin with a kept attention
        if last < blocks and last not in kept:
            continue
        while first < last - 1 and chance.random() < 0.8:
            end = chance.randint(first + 1, last - 1)
            try:
                blueprint = blueprint.fuse(first, end)
            except BlueprintError:
                break
            first = end + 1
        first = last
    return blueprint


def _measured(parent: Checkpoint, limits: Limits, options: argparse.Namespace) -> dict[int, list[Observation]]:
    """Batch size -> the parent and every child with its decode step, the parent's first."""
    chance, dtype = random.Random(options.seed), getattr(torch, options.dtype)
    identity = Blueprint.identity(parent.spec.parent(parent.name))
    whole = realise(Child(parent, identity, width_multiple=1), dtype)
    base: dict[int, list[float]] = {batch: [] for batch in options.batch}
    ratios: list[tuple[Child, dict[int, float]]] = []
    for i in range(options.fit + options.predict):
        child = Child(parent, random_blueprint(parent, chance), width_multiple=1)
        latency = bench(
            {"parent": whole, "child": realise(child, dtype)},
            batches=options.batch,
            context=options.context,
            new_tokens=options.new_tokens,
            rounds=options.rounds,
            seed=i,
        )
        for batch in options.batch:
            base[batch].append(latency.get("parent", "decode", batch).median_s / options.new_tokens)
        ratios.append((child, {b: latency.get("child", "decode", b).speedup["parent"] for b in options.batch}))
        limits.look()
        said = ", ".join(f"{1e3 * base[b][-1]:.1f} ms / {ratio:.2f} at batch {b}" for b, ratio in ratios[-1][1].items())
        print(f"{i + 1} of {options.fit + options.predict}: {said}", file=sys.stderr, flush=True)
    return {b: _observations(parent, b, median(base[b]), ratios, options) for b in options.batch}


def _observations(
    parent: Checkpoint,
    batch: int,
    seconds: float,
    ratios: list[tuple[Child, dict[int, float]]],
    options: argparse.Namespace,
) -> list[Observation]:
    precision = PRECISIONS[options.dtype]
    setting = Setting(1, batch, options.context, options.new_tokens, precision, precision)
    children = [
        Observation(f"child {i}", child.spec, setting, seconds / ratio[batch])
        for i, (child, ratio) in enumerate(ratios)
    ]
    return [Observation("parent", parent.spec, setting, seconds), *children]


class Limits:
    """The most that this machine read and multiplied a second, with no engine, in any of the looks at it."""

    def __init__(self, quick: bool) -> None:
        self._numbers = torch.ones(1 << (20 if quick else 26))
        self._square = torch.ones(256 if quick else 1024, 256 if quick else 1024)
        self.bandwidth = self.flops = 0.0

    def look(self) -> None:
        rows = self._square.shape[0]
        self.bandwidth = max(self.bandwidth, self._numbers.nbytes / _best(lambda: self._numbers.sum()))
        self.flops = max(self.flops, 2 * rows**3 / _best(lambda: self._square @ self._square))

    def machine(self) -> Machine:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return Machine(
            name="cpu", memory=memory, bandwidth=self.bandwidth, flops={"fp32": self.flops}, memory_efficiency=0.5
        )


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _figures(seen: dict[int, list[Observation]], machine: Machine, options: argparse.Namespace) -> dict[str, float]:
    found = fit_machine(machine, seen[1][: options.fit + 1])
    left_out = [abs(error) for error in found.left_out or (0.0,)]
    figures = {
        "read GB/s": machine.bandwidth / 1e9,
        "products GFLOP/s": machine.flops["fp32"] / 1e9,
        **{f"fitted: {name}": float(getattr(found.machine, name)) for name in found.machine.fitted},
        "median error, fitted on": median(map(abs, found.errors)),
        "median error, left out of the fit": median(left_out),
        "parent ms a token": seen[1][0].seconds * 1e3,
    }
    for batch, all_of_them in seen.items():
        others = all_of_them[options.fit + 1 :]
        off = [abs(error) for error in errors(found.machine, others)]
        speeds = [all_of_them[0].seconds / one.seconds for one in others]
        figures |= {
            f"median error, batch {batch}": median(off),
            f"largest error, batch {batch}": max(off),
            **_fitted_there(machine, batch, all_of_them, options.fit + 1),
            f"least speed-up, batch {batch}": min(speeds),
            f"largest speed-up, batch {batch}": max(speeds),
        }
    return figures


def _fitted_there(machine: Machine, batch: int, seen: list[Observation], fitted_on: int) -> dict[str, float]:
    """With constants of that batch's own: products of few rows are far from what large ones reach."""
    if batch == 1:
        return {}
    off = errors(fit_machine(machine, seen[:fitted_on]).machine, seen[fitted_on:])
    return {f"median error, batch {batch}, fitted at batch {batch}": median(map(abs, off))}


if __name__ == "__main__":
    main()
