"""The builder against `cp`: time and memory to fuse a random sharded Llama of 6 GB.

Both read the same checkpoint from disk (page cache dropped as far as the system allows) and write as many bytes to the
same disk, synced; they take turns, so that both see the same disk. The builder hashes and checks every byte as well.
Memory is the peak of the process above that of the same interpreter with everything imported.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish
from random_llama import forget, llama_config

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.random_model import write_random_model
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.surgery.build import build, child_bytes
from ffn_fusion.surgery.child import Child

GOALS = {"time_ratio_to_cp": 1.3, "rss_gib_above_base_and_inputs": 1.0}


def config(quick: bool) -> dict[str, object]:
    """About 6 GB in bfloat16 (60 MB if quick)."""
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "vocab_size": 8192}
    if not quick:
        size = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "vocab_size": 32768}
    return llama_config(**size, num_attention_heads=16, num_key_value_heads=4)


def blueprint(folder: Path) -> Blueprint:
    """Two runs: one of 9 FFNs that fold and concatenate, one of 5."""
    spec = open_folder(folder).spec
    identity = Blueprint.identity(spec.parent("random"))
    return identity.apply([*range(6, 16), *range(17, 23)], [(6, 14), (17, 21)])


def build_once(parent: Path, target: Path, *, base_only: bool) -> tuple[float, float]:
    """(seconds, peak RSS in GiB) of one build in a process of its own; ``base_only``: of everything but the build."""
    words = [sys.executable, __file__, "--one", str(parent), str(target), "base" if base_only else "build"]
    seconds, peak = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(peak)


def one_build(parent: Path, target: Path, what: str) -> None:
    plan, checkpoint = blueprint(parent), open_folder(parent)
    start = time.perf_counter()
    if what == "build":
        build(checkpoint, plan, target)
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def copy_once(parent: Path, target: Path, count: int) -> float:
    """Seconds that `cp` and a sync take for ``count`` bytes of the parent's weights."""
    target.mkdir()
    files = sorted(parent.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    start = time.perf_counter()
    subprocess.run(["cp", *map(str, files), str(target)], check=True)
    subprocess.run(["sync", *map(str, sorted(target.iterdir())), str(target)], check=True)
    return (time.perf_counter() - start) * count / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a 60 MB model, to see that it works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_build(Path(options.one[0]), Path(options.one[1]), options.one[2])
        return
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        work = Path(place)
        parent = work / "parent"
        write_random_model(parent, config(options.quick), shard_bytes=1 << (24 if options.quick else 30))
        child = Child(open_folder(parent), blueprint(parent))
        inputs = max(
            sum(child.parent.tensors[source].nbytes for source in tensor.join.sources)
            for tensor in child.tensors.values()
        )
        base = build_once(parent, work / "none", base_only=True)[1]
        built, copied, peaks = [], [], []
        for turn in range(rounds):
            for build_first in (turn % 2 == 0, turn % 2 == 1):
                forget(parent)
                if build_first:
                    seconds, peak = build_once(parent, work / "child", base_only=False)
                    size = sum(file.stat().st_size for file in (work / "child").glob("*.safetensors"))
                    built.append(seconds)
                    peaks.append(peak)
                    shutil.rmtree(work / "child")
                else:
                    copied.append(copy_once(parent, work / "copy", child_bytes(child)))
                    shutil.rmtree(work / "copy")
    figures = {
        "child_gb": size / 1e9,
        "build_seconds": statistics.median(built),
        "cp_seconds": statistics.median(copied),
        "time_ratio_to_cp": statistics.median(b / c for b, c in zip(built, copied, strict=True)),
        "rss_base_gib": base,
        "rss_peak_gib": max(peaks),
        "largest_inputs_gib": inputs / 2**30,
        "rss_gib_above_base_and_inputs": max(peaks) - base - inputs / 2**30,
    }
    goals = {} if options.quick else GOALS  # a second of work says nothing about disks
    met = all(figures[name] <= bound for name, bound in goals.items())
    finish("build", figures, goals, met, {"rounds": str(rounds), "order": "build and cp in turn, caches dropped"})


if __name__ == "__main__":
    main()
