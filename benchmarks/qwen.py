"""A second family: Qwen2.5-Coder-0.5B without 5 % and without 20 % of its attentions, and what fusing FFNs adds.

One analysis serves both plans. Children are scored in one evaluation, on texts that were not calibrated on. Every step
leaves its result in the folder (--folder, by default .demo/qwen.run) and isn't done twice; ``--keep`` writes what was
measured to docs/results/qwen.json. The model is fetched first (demo/fetch.py --qwen, 480 MB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import finish
from quality_bench import KINDS, TEXTS
from sources import RESULTS, ROOT, stamp

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.measure import analyze
from ffn_fusion.analysis.plan import plan
from ffn_fusion.analysis.settings import AnalysisSettings, PlanSettings
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.checkpoint.random_model import write_byte_tokenizer, write_random_model
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.data.windows import make_windows
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.report.model_grids import sequential_steps
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import Repairs

MODEL = ROOT / ".demo" / "Qwen2.5-Coder-0.5B-Instruct.gguf"
ANALYSIS = AnalysisSettings(parts=("attention",), max_run=2, candidate_share=0.3, leave_last=False)
SHARES = {"5 %": 0.05, "20 %": 0.2}
JUDGED_ON = ("speeches", "encyclopedia", "web")


@dataclass(frozen=True)
class Sizes:
    """Tokens a window, and windows of every kind of text."""

    analysis: tuple[int, int] = (128, 2)
    repair: tuple[int, int] = (256, 2)
    evaluation: tuple[int, int] = (256, 2)


@dataclass
class Bench:
    """The parent, and a folder with what was measured already; ``text`` stands in for every kind of text."""

    parent: Checkpoint
    folder: Path
    sizes: Sizes
    text: Path | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what a step measured, from its file where there is one; with the CPU seconds that it took."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            print(name, flush=True)
            began = time.process_time()
            found = measure()
            file.write_text(json.dumps({"cpu_seconds": time.process_time() - began, "found": found}, indent=1))
        return json.loads(file.read_text())["found"]

    @property
    def cpu_seconds(self) -> dict[str, float]:
        return {file.stem: json.loads(file.read_text())["cpu_seconds"] for file in sorted(self.folder.glob("*.json"))}

    def texts(self, size: tuple[int, int], kinds: Mapping[str, Path]) -> list[TokenWindows]:
        tokenizer, (context, count) = load_tokenizer(self.parent.folder), size
        return [
            make_windows(tokenizer, self.text or path, context, context * count, label=kind)
            for kind, path in kinds.items()
        ]

    @cached_property
    def evidence(self) -> Evidence:
        place = self.folder / "evidence"

        def measure() -> None:
            texts = self.texts(self.sizes.analysis, {kind: calibration(kind) for kind in JUDGED_ON})
            analyze(self.parent, texts, ANALYSIS, workspace=self.folder / ".analysis").save(place)

        self.step("analysis", measure)
        return Evidence.load(place)

    def repaired(self, name: str, blueprint: Blueprint) -> Child:
        place = self.folder / f"{name} repairs"

        def measure() -> None:
            texts = self.texts(self.sizes.repair, {kind: calibration(kind) for kind in KINDS})
            repair_child(Repair(self.parent, blueprint, texts, place))

        self.step(f"repair of {name}", measure)
        return Child(self.parent, blueprint, 1, Repairs(place))


def calibration(kind: str) -> Path:
    """Where the demo keeps this kind of text to calibrate on."""
    return TEXTS / ("calibration/speeches.txt" if kind == "speeches" else KINDS[kind][0])


def held_out(kind: str) -> Path:
    """The same kind of text, to score on."""
    return TEXTS / ("held-out/speech.txt" if kind == "speeches" else KINDS[kind][1])


def measure(bench: Bench) -> dict[str, Any]:
    """Plan both children, repair them, and score them beside the models on the way to them."""
    models: dict[str, TensorSource] = {"parent": bench.parent}
    plans: dict[str, Any] = {}
    for name, share in SHARES.items():
        made = plan(bench.parent.spec, bench.evidence, PlanSettings(drop_attention=share)).blueprint
        unfused = made.unfused()
        dropped, runs = made.dropped_attentions, made.runs
        plans[name] = {"dropped": format_blocks(dropped), "runs": format_runs(runs), "steps": sequential_steps(made)}
        models[f"{name} dropped"] = Child(bench.parent, unfused)
        models[f"{name} dropped, repaired"] = bench.repaired(f"{name} dropped", unfused)
        if runs:
            models[f"{name} dropped and fused"] = Child(bench.parent, made)
            models[f"{name} dropped and fused, repaired"] = bench.repaired(f"{name} fused", made)
    kinds = {kind: held_out(kind) for kind in KINDS}

    def score() -> list[dict[str, Any]]:
        return [text.model_dump() for text in evaluate(models, bench.texts(bench.sizes.evaluation, kinds))]

    texts = bench.step("evaluation", score)
    return {"plans": plans, "texts": texts, "cpu_seconds": bench.cpu_seconds, "threads": torch.get_num_threads()}


def real(place: Path) -> Bench:
    subprocess.run([sys.executable, ROOT / "demo" / "fetch.py", "--qwen"], check=True)
    return Bench(open_model(MODEL), place, Sizes())


def tiny(place: Path) -> Bench:
    """A random Llama that knows bytes; it reads README.md."""
    from random_llama import TINY, llama_config

    write_random_model(
        place / "parent", llama_config(**(TINY | {"num_hidden_layers": 10, "vocab_size": 258})), shard_bytes=1 << 30
    )
    write_byte_tokenizer(place / "parent")
    return Bench(open_model(place / "parent"), place / "run", Sizes((16, 2), (16, 2), (16, 2)), ROOT / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work (default: .demo/qwen.run; kept, for the next time)")
    parser.add_argument("--keep", action="store_true", help="write docs/results/qwen.json")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            result = measure(tiny(Path(place)))
    else:
        result = measure(real(options.folder or ROOT / ".demo" / "qwen.run"))
    if options.keep:
        about = {"command": "python benchmarks/qwen.py --keep", "benchmark": "qwen", **stamp("qwen")}
        (RESULTS / "qwen.json").write_text(json.dumps({**about, **result}, indent=1) + "\n", encoding="utf-8")
    texts = result["texts"]
    kl = {name: sum(text["scores"][name]["kl"] for text in texts) / len(texts) for name in texts[0]["scores"]}
    finish("qwen", {f"KL | {name}": value for name, value in kl.items()}, {}, True)


if __name__ == "__main__":
    main()
