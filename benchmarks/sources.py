"""Which commit a result was taken at, and whether the code that it measures is still the same.

Every kept result (docs/results/NAME.json, whole or a part of it) names its ``commit`` and a hash of its ``sources``:
the files of the benchmark and of the rooms under measurement. A result is stale when those files have changed since.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
UNKNOWN = "unknown"
"""Commit or hash of a result that was taken before results named them; it counts as stale."""

_SURGERY = ("src/ffn_fusion/surgery/*.py", "src/ffn_fusion/checkpoint/*.py")
_REPAIR = ("src/ffn_fusion/repair/*.py", "src/ffn_fusion/solve/*.py", "src/ffn_fusion/blockwise/*.py")
_ANALYSIS = ("src/ffn_fusion/analysis/*.py", "src/ffn_fusion/blockwise/*.py")
_MODELING = ("src/ffn_fusion/modeling/*.py",)
_ENGINES = ("src/ffn_fusion/engines/*.py", "src/ffn_fusion/export/*.py", *_MODELING)
_LATENCY = ("src/ffn_fusion/latency/*.py", *_MODELING)
_DISTILLATION = ("src/ffn_fusion/distillation/*.py", *_MODELING)

SOURCES: Mapping[str, tuple[str, ...]] = {
    "analysis": ("benchmarks/analysis*.py", "benchmarks/naive_analysis.py", *_ANALYSIS, *_REPAIR, *_MODELING),
    "build": ("benchmarks/build.py", *_SURGERY),
    "demo": ("recipes/demo.yaml", *_ANALYSIS, *_REPAIR, *_SURGERY, *_LATENCY, "src/ffn_fusion/evaluation/*.py"),
    "distill": ("benchmarks/distill.py", "benchmarks/distill_*.py", *_DISTILLATION),
    "distill_quality": ("benchmarks/distill_*.py", "benchmarks/quality_bench.py", *_DISTILLATION),
    "ffn_path": ("benchmarks/ffn_path.py", *_MODELING),
    "hardware": ("benchmarks/hardware.py", "benchmarks/published.*", *_LATENCY),
    "hardware_cpu": ("benchmarks/hardware_cpu.py", *_LATENCY),
    "hardware_gpu": ("benchmarks/hardware_gpu.py", *_LATENCY),
    "library": ("benchmarks/library*.py", "src/ffn_fusion/puzzle/*.py", *_REPAIR),
    "multipliers": ("benchmarks/multipliers*.py", *_ENGINES),
    "qwen": ("benchmarks/qwen.py", *_ANALYSIS, *_REPAIR, *_SURGERY, "src/ffn_fusion/evaluation/*.py"),
    "parallel": ("benchmarks/parallel*.py", "benchmarks/quality_bench.py", *_ANALYSIS, *_REPAIR, *_SURGERY),
    "quantize": ("benchmarks/quantize.py", *_SURGERY, *_ENGINES),
    "repair": ("benchmarks/repair*.py", "benchmarks/quality_bench.py", *_REPAIR),
    "search": ("benchmarks/search.py", "src/ffn_fusion/search/*.py"),
    "speed": ("benchmarks/speed.py", *_ENGINES, *_LATENCY),
    "tensor_parallel": ("benchmarks/tensor_parallel.py", *_LATENCY),
}
"""Files under measurement of every benchmark, as globs from the root of the repository."""


def stamp(name: str) -> dict[str, str]:
    """Return the commit that is checked out and the hash of a benchmark's sources as they lie in the working tree."""
    return {"commit": _git("rev-parse", "--short=12", "HEAD").strip() or UNKNOWN, "sources": hash_of_sources(name)}


def hash_of_sources(name: str, commit: str | None = None) -> str:
    """Return a hash over names and contents of the files that a benchmark measures.

    Args:
        commit: as they were then; None: as they are in the working tree.
    """
    digest = hashlib.sha256()
    for path, blob in sorted(_blobs(commit).items()):
        if any(PurePosixPath(path).match(glob) for glob in SOURCES[name]):
            digest.update(f"{blob} {path}\n".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Kept:
    """A result in docs/results/FILE.json: the whole file (``part`` None) or one of its parts."""

    file: str
    part: str | None
    result: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        name: str = self.result.get("benchmark", "demo")
        return name

    @property
    def commit(self) -> str:
        commit: str = self.result["commit"]
        return commit

    @property
    def command(self) -> str:
        """The command that takes it again."""
        return str(self.result.get("command", f"make bench-{self.benchmark}"))

    def is_stale(self) -> bool:
        """Whether the files that it measures have changed since."""
        return bool(self.result["sources"] != hash_of_sources(self.benchmark))


def kept_results(folder: Path = RESULTS) -> Iterator[Kept]:
    """Yield every result in the folder, in order."""
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "benchmark" in found or "command" in found:
            yield Kept(path.name, None, found)
        else:
            for part, result in found.items():
                yield Kept(path.name, part, result)


def _blobs(commit: str | None) -> dict[str, str]:
    """Git's hash of every file: in a commit, or in the working tree (of files that git knows or would add)."""
    if commit is not None:
        lines = _git("ls-tree", "-r", commit).splitlines()
        return {path: head.split()[2] for head, path in (line.split("\t", 1) for line in lines)}
    paths = [path for glob in {g for globs in SOURCES.values() for g in globs} for path in ROOT.glob(glob)]
    return {path.relative_to(ROOT).as_posix(): _blob(path.read_bytes()) for path in paths}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _git(*words: str) -> str:
    """Output of git in this repository; empty where there is none."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
