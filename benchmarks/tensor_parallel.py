"""Parent, pruned and fused child of a random Llama on two processes: a token's time, and what of it is all-reduces.

    python benchmarks/tensor_parallel.py                  # gloo, or nccl where there are two GPUs
    python benchmarks/tensor_parallel.py --model FOLDER FOLDER FOLDER

Half of the attentions are dropped, in the middle; the FFNs left there are fused but for the last. All models run in
every round; ratios are medians within rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import finish
from lab.tensor_parallel import TensorParallel, measure_tensor_parallel
from random_llama import TINY, llama_config

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.random_model import write_random_model
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.surgery.build import build

NAMES = ("parent", "pruned", "fused")
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
}


def children(place: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """The three models, on disk."""
    write_random_model(place / "parent", llama_config(**sizes, max_position_embeddings=2048), shard_bytes=1 << 30)
    parent = open_folder(place / "parent")
    identity = Blueprint.identity(parent.spec.parent("parent"))
    quarter = sizes["num_hidden_layers"] // 4
    drop = range(quarter, sizes["num_hidden_layers"] - quarter)
    build(parent, identity.apply(drop), place / "pruned")
    build(parent, identity.apply(drop, [(drop[0], drop[-2])]), place / "fused")
    return {name: place / name for name in NAMES}


def figures_of(found: TensorParallel) -> dict[str, float]:
    figures: dict[str, float] = {}
    for timing in found.timings:
        figures |= {
            f"{timing.model}: all-reduces counted": timing.counted,
            f"{timing.model}: all-reduces measured": timing.measured,
            f"{timing.model}: ms a token": 1e3 * timing.median_s,
            f"{timing.model}: ms in all-reduces": 1e3 * timing.all_reduce_s,
            f"{timing.model}: ms in bare all-reduces": 1e3 * timing.counted * found.cost.seconds(timing.message_bytes),
        }
        figures |= {f"{timing.model}: speed over {other}": ratio for other, ratio in timing.speedup.items()}
    figures |= {f"bare all-reduce of {row.nbytes:,} bytes, us": 1e6 * row.median_s for row in found.bare}
    return figures | {"alpha, us": 1e6 * found.cost.alpha, "1 / beta, GB/s": 1e-9 / max(found.cost.beta, 1e-15)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs=3, metavar="FOLDER", help="parent, pruned and fused child instead")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    rounds, tokens = (1, 2) if options.quick else (options.rounds, options.new_tokens)
    enough = torch.cuda.device_count() >= options.processes
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        given = dict(zip(NAMES, options.model, strict=True)) if options.model else None
        found = measure_tensor_parallel(
            given or children(Path(place), TINY if options.quick else LLAMA),
            options.processes,
            batch=options.batch,
            new_tokens=tokens,
            rounds=rounds,
            dtype=options.dtype,
            device="cuda" if enough else "cpu",
        )
    figures = figures_of(found)
    wrong = sum(timing.counted != timing.measured for timing in found.timings)
    figures["models whose count is off"] = wrong
    pruned_over_fused = 1 / next(timing for timing in found.timings if timing.model == "fused").speedup["pruned"]
    figures["fused's time over pruned's"] = pruned_over_fused
    goals = {"models whose count is off": 0.0} | ({} if options.quick else {"fused's time over pruned's": 1.0})
    notes = {"backend": found.backend, "engine": found.engine, "processes": str(found.processes)}
    finish("tensor_parallel", figures, goals, all(figures[name] <= bound for name, bound in goals.items()), notes)


if __name__ == "__main__":
    main()
