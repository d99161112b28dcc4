"""The generated parts of docs/: cog writes what these functions return between its markers.

``python tools/docs.py`` rewrites them, ``--check`` only says whether they are up to date (a test runs it).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VERBS = (
    "run", "optimize", "inspect", "analyze", "plan", "explain", "windows", "widths", "build", "fuse", "repair",
    "distill", "export", "check", "verify", "eval", "score", "bench", "predict", "report",
)  # fmt: skip


def exit_codes() -> str:
    from ffn_fusion.errors import EXIT_CODES

    return "\n".join(
        ["| code | meaning |", "|---|---|", *(f"| {code} | {text} |" for code, text in EXIT_CODES.items())]
    )


def help_texts() -> str:
    """What ``--help`` says, verb by verb."""
    from typer.testing import CliRunner

    from ffn_fusion.cli.main import app

    runner = CliRunner(env={"COLUMNS": "110", "TERMINAL_WIDTH": "110"})
    parts = []
    for verb in VERBS:
        text = runner.invoke(app, [verb, "--help"]).stdout.rstrip()
        parts.append(f"## ffn-fusion {verb}\n\n```text\n{re.sub(r'[ ]+$', '', text, flags=re.M).strip()}\n```\n")
    return "\n".join(parts)


def scale_table() -> str:
    """What an analysis takes on machines that aren't here, by the planner that ``--dry-run`` prints."""
    import torch

    from ffn_fusion.blockwise import (
        Pace,
        RemoveAttention,
        RemoveBlock,
        RemoveFfn,
        Room,
        count_work,
        make_schedule,
    )  # fmt: skip
    from ffn_fusion.errors import UsageError
    from ffn_fusion.families import read_spec
    from ffn_fusion.families.layout import model_tensors
    from ffn_fusion.units import duration, gb, gib

    gibi, tera = 1 << 30, 1e12
    heads = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False}
    models = {
        "Llama-3.1-8B": (4096, 14_336, 32, 32),
        "Llama-3.1-70B": (8192, 28_672, 80, 64),
        "Llama-3.1-405B": (16_384, 53_248, 126, 128),
    }
    # name: memory where it's computed, memory for the cache, FLOP/s, disk bytes/s, processes, dtype
    machines = {
        "CPU, 2 cores, 24 GB": (22 * gibi, 11 * gibi, 0.13 * tera, 0.5e9, 1, torch.float32),
        "RTX 4090, 64 GB host": (23 * gibi, 30 * gibi, 165 * tera / 2, 5e9, 1, torch.bfloat16),
        "1 x H100, 256 GB host": (78 * gibi, 120 * gibi, 989 * tera / 2, 6e9, 1, torch.bfloat16),
        "8 x H100, 2 TB host": (78 * gibi, 125 * gibi, 989 * tera / 2, 6e9 / 8, 8, torch.bfloat16),
    }
    rows = [
        "| model | machine | weights read | chunks | states, of them to disk | disk | peak memory | PFLOPs | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, (hidden, width, blocks, attention_heads) in models.items():
        sizes = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": blocks}
        config = {"model_type": "llama", **sizes, "num_attention_heads": attention_heads, **heads}
        spec = read_spec(config)
        stored = 2 * sum(prod(shape) for shape in model_tensors(spec).values())
        edits = [kind(i) for i in range(blocks) for kind in (RemoveBlock, RemoveAttention, RemoveFfn)]
        work = count_work(spec, edits, scored=blocks, context=512)
        for machine, (memory, cache, flops, disk, processes, dtype) in machines.items():
            windows = 32 // processes
            room = Room(used=gibi // 2, free=memory, cache=cache, disk=4 << 40)
            options: dict[str, Any] = {"windows": windows, "stored": stored, "room": room, "memory": memory}
            try:
                plan = make_schedule(work, dtype=dtype, in_files=True, **options)
            except UsageError:
                machine, dtype = f"{machine}, bfloat16", torch.bfloat16
                plan = make_schedule(work, dtype=dtype, in_files=True, **options)
            seconds = Pace(flops, flops, disk).seconds(work, plan, windows)
            total = windows * (work.block_flops + work.head_flops) * processes
            cells = (
                model, machine + (", each" if processes > 1 else ""), gb(plan.weight_bytes), str(plan.chunks),
                f"{gb(plan.moved_bytes)}, {gb(plan.spilled_bytes)}", gb(plan.disk_bytes), gib(plan.peak_memory),
                f"{total / 1e15:,.0f}", duration(seconds),
            )  # fmt: skip
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def analysis_results() -> str:
    """What benchmarks/analysis.py printed, from docs/results/analysis.json."""
    kept = json.loads((ROOT / "docs" / "results" / "analysis.json").read_text(encoding="utf-8"))
    ratio, large = kept["ratio"]["figures"], kept["large"]["figures"]
    rows = [
        "| SmolLM2-135M, 4 x 512 tokens | naive | ours | ratio | ideal by counts | goal |",
        "|---|---|---|---|---|---|",
    ]
    names = {"matrix": "block dependency matrix", "both": "with replace-1 of every attention"}
    for key, what in names.items():
        seconds = f"{ratio[f'naive_{key}_seconds']:.0f} s | {ratio[f'our_{key}_seconds']:.0f} s"
        goal = kept["ratio"]["goals"][f"ratio_{key}"]
        rows.append(
            f"| {what} | {seconds} | {ratio[f'ratio_{key}']:.2f} | {ratio[f'ideal_ratio_{key}']:.2f} | {goal} |"
        )
    rounds = kept["ratio"]["notes"]["rounds"]
    read, matrix, kl = (ratio[name] for name in ("reads_per_weight", "matrix_difference", "kl_difference"))
    differences = f"matrix {matrix:.1e} of its largest entry, KL {kl:.1e}"
    rows += ["", f"Rounds: {rounds}. Weights read: {read:.2f}x. Largest difference of the two ways: {differences}.", ""]
    rows += ["| random Llama of 12.1 GB, `--memory 4GiB`, 128 tokens | estimated | measured |", "|---|---|---|"]
    rows.append(f"| seconds | {large['estimated_seconds']:.0f} | {large['seconds']:.0f} |")
    rows.append(f"| weights read, of the checkpoint | 1.00 | {large['weights_read_ratio']:.2f} |")
    rows.append(f"| peak memory, GiB | {large['estimated_peak_gib']:.2f} | {large['peak_rss_gib']:.2f} |")
    return "\n".join(rows)


def results(of: str, part: str, digits: int = 3, rows: Sequence[str] = ()) -> str:
    """What a benchmark printed for a part, kept in docs/results/OF.json: figures are "part | row | column".

    ``rows``: those that are shown (default: all).
    """
    kept = json.loads((ROOT / "docs" / "results" / f"{of}.json").read_text(encoding="utf-8"))[part]
    table: dict[str, dict[str, str]] = {}
    for name, value in kept["figures"].items():
        _, row, column = name.split(" | ")
        if rows and row not in rows:
            continue
        whole = column in ("tokens", "seconds")
        text = f"{value:,.0f}" if whole else f"{value:.{digits}f}"
        goal = kept["goals"].get(name)
        table.setdefault(row, {})[column] = text + (f" (goal ≤ {goal:g})" if goal else "")
    columns = list(dict.fromkeys(column for cells in table.values() for column in cells))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {row} | " + " | ".join(cells.get(c, "") for c in columns) + " |" for row, cells in table.items()]
    return "\n".join(lines)


def speed_results(part: str) -> str:
    """Decoding in docs/results/speed.json: tokens a second of each model, and its time over that of the one before."""
    kept = json.loads((ROOT / "docs" / "results" / "speed.json").read_text(encoding="utf-8"))[part]
    table: dict[tuple[str, str], dict[str, str]] = {}
    for name, value in kept["figures"].items():
        _, kind, setting, model, what = name.split(" | ")
        if not setting.startswith("decode"):
            continue
        cells, batch = table.setdefault((kind, model), {}), setting.removeprefix("decode, ")
        if what == "tokens a second":
            cells[f"tokens a second, {batch}"] = f"{value:,.1f}"
        elif what.startswith("time over"):
            cells[f"time, {batch}"] = f"{value:.2f} of {what.removeprefix('time over ')}"
    columns = sorted(dict.fromkeys(column for cells in table.values() for column in cells), key=lambda c: c[-1])
    lines = ["| | | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for (kind, model), cells in table.items():
        lines.append(f"| {kind} | {model} | " + " | ".join(cells.get(c, "") for c in columns) + " |")
    return "\n".join(lines)


def quantize_results(part: str) -> str:
    """What benchmarks/quantize.py printed for a part (docs/results/quantize.json), in percent of the output's norm."""
    kept = json.loads((ROOT / "docs" / "results" / "quantize.json").read_text(encoding="utf-8"))[part]
    table: dict[str, dict[str, str]] = {}
    for name, value in kept["figures"].items():
        _, row, column = name.split(" | ")
        table.setdefault(row, {})[column] = f"{value:.2%}"
    columns = list(dict.fromkeys(column for cells in table.values() for column in cells))
    rows = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    rows += [f"| {row} | " + " | ".join(cells.get(c, "") for c in columns) + " |" for row, cells in table.items()]
    return "\n".join(rows)


def repair_scale() -> str:
    """What a repair takes on models that aren't here, by the planner that ``--dry-run`` prints."""
    import torch

    from ffn_fusion.blockwise import Pace, Room
    from ffn_fusion.blueprint import Blueprint, apply
    from ffn_fusion.errors import UsageError
    from ffn_fusion.families import BlockSpec, FfnSpec, ModelSpec, read_spec
    from ffn_fusion.repair.places import places
    from ffn_fusion.repair.plan import make_plan
    from ffn_fusion.repair.program import make_program
    from ffn_fusion.repair.settings import RepairSettings
    from ffn_fusion.units import duration, gb, gib

    def child_spec(parent: ModelSpec, blueprint: Blueprint) -> ModelSpec:
        blocks = []
        for block in blueprint.kept_blocks:
            attention = parent.blocks[block.attention.sources[0]].attention if block.attention.sources else None
            blocks.append(BlockSpec(attention, FfnSpec("gated", blueprint.width(block))))
        return replace(parent, blocks=tuple(blocks))

    gibi, tera = 1 << 30, 1e12
    heads = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False}
    sizes = {
        "Llama-3.1-8B, attentions 20-25 dropped": (4096, 14_336, 32, 32, (20, 25)),
        "Llama-3.1-70B, attentions 50-57 dropped": (8192, 28_672, 80, 64, (50, 57)),
        "Llama-3.1-405B, attentions 90-97 dropped": (16_384, 53_248, 126, 128, (90, 97)),
    }
    machines = {
        "CPU, 24 GB": (22 * gibi, 0.13 * tera, 1),
        "1 x H100": (78 * gibi, 60 * tera / 2, 1),
        "8 x H100, each": (78 * gibi, 60 * tera / 2, 8),
    }
    rows = ["| model | machine | widest | solved | peak memory | disk | PFLOPs | time |", "|" + "---|" * 8]
    for model, (hidden, width, blocks, attention_heads, (first, last)) in sizes.items():
        config = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": width}
        config |= {"num_hidden_layers": blocks, "num_attention_heads": attention_heads, **heads}
        spec = read_spec(config)
        for machine, (memory, flops, processes) in machines.items():
            room = Room(used=gibi // 2, free=memory, cache=memory, disk=4 << 40)
            plan = None
            for together, dtype in product((last - first, 4, 3, 2), (torch.float32, torch.bfloat16)):
                blueprint = apply(
                    Blueprint.identity(spec.parent("")), range(first, last + 1), [(first, last - 1)],
                    max_width=together * width,
                )  # fmt: skip
                program = make_program(blueprint, places(blueprint, 6, attention=True), range(blocks))
                with suppress(UsageError):
                    plan = make_plan(
                        program, spec, child_spec(spec, blueprint), RepairSettings(),
                        windows=256 // processes, context=512, processes=processes, stored=2, dtype=dtype,
                        room=room, memory=memory, pace=Pace(flops, flops, 1e9),
                    )  # fmt: skip
                    break
            if plan is None:
                rows.append(f"| {model} | {machine} | too little memory |  |  |  |  |  |")
                continue
            streamed = sum(not found.exact for found in plan.places)
            cells = (
                model, f"{machine}, {str(dtype).removeprefix('torch.')}",
                f"{max(found.width for found in plan.places):,}",
                f"{streamed} of {len(plan.places)} streamed" if streamed else "exactly",
                gib(plan.peak_memory), gb(plan.disk_bytes), f"{plan.flops / 1e15:,.1f}", duration(plan.seconds or 0),
            )  # fmt: skip
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def recipe_table() -> str:
    from ffn_fusion.pipeline.recipe import Recipe

    rows = ["| key | default | allowed |", "|---|---|---|"]
    schema = Recipe.model_json_schema()

    def walk(properties: dict[str, Any], prefix: str) -> None:
        for key, entry in properties.items():
            ref = entry.get("$ref") or (entry.get("allOf") or [{}])[0].get("$ref")
            if ref:
                walk(schema["$defs"][ref.rsplit("/", 1)[1]]["properties"], f"{prefix}{key}.")
            else:
                default = "required" if "default" not in entry else f"`{entry['default']}`"
                rows.append(f"| `{prefix}{key}` | {default} | {_allowed(entry)} |")

    walk(schema["properties"], "")
    return "\n".join(rows)


def _allowed(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_allowed(option) for option in entry["anyOf"])
    if "$ref" in entry:
        return "stages of the keys above"
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry.get("type") == "array":
        return f"list of {_allowed(entry.get('items', {}))}"
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "null": "nothing",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = " ".join(f"{sign} {entry[key]}" for key, sign in bounds.items() if key in entry)
    return f"{'path' if entry.get('format') == 'path' else names.get(entry.get('type', ''), 'anything')} {said}".strip()


def api_table() -> str:
    import inspect

    import ffn_fusion

    rows = ["| name | |", "|---|---|"]
    for name in ffn_fusion.__all__:
        summary = (inspect.getdoc(getattr(ffn_fusion, name)) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{name}` | {summary.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def engine_table() -> str:
    """Which rule is which engine's, and whether ``check --fix`` rewrites what breaks it."""
    from ffn_fusion.portability.form import FORM_RULES
    from ffn_fusion.portability.rule import ENGINES
    from ffn_fusion.portability.shipped import SHIPPED_RULES

    rows = ["| rule | asks that | " + " | ".join(ENGINES) + " |", "|---|---|" + "---|" * len(ENGINES)]
    for rule in (*FORM_RULES, *SHIPPED_RULES):
        word = "fixed" if rule.fix else "cannot"
        seen = {engine: f"**{word}**" if reason.seen else word for engine, reason in rule.engines.items()}
        rows.append(f"| {rule.name} | {rule.asks} | " + " | ".join(seen.get(engine, "") for engine in ENGINES) + " |")
    return "\n".join(rows)


def engine_reasons() -> str:
    """What each engine does with a child that breaks a rule, and what that was run in or read from."""
    from ffn_fusion.portability.form import FORM_RULES
    from ffn_fusion.portability.rule import ENGINES, SOURCES
    from ffn_fusion.portability.shipped import SHIPPED_RULES

    lines = []
    for engine in ENGINES:
        lines += [f"* **{engine}** ({SOURCES[engine]})"]
        said: dict[tuple[str, bool], list[str]] = {}
        for rule in (*FORM_RULES, *SHIPPED_RULES):
            if engine in rule.engines:
                reason = rule.engines[engine]
                said.setdefault((reason.text, reason.seen), []).append(rule.name)
        for (text, seen), names in said.items():
            how = "" if seen else " (read in its source, not run)"
            lines.append(f"    * {', '.join(names)}: {text}{how}")
    return "\n".join(lines)


def fixes_table() -> str:
    """How ``check --fix`` rewrites what breaks a rule."""
    from ffn_fusion.portability.form import FORM_RULES

    rows = ["| rule | how it's rewritten |", "|---|---|"]
    return "\n".join(rows + [f"| {rule.name} | {rule.fix} |" for rule in FORM_RULES if rule.fix])


def demo_table() -> str:
    """Quality and decode speed of the demo, from what its run left in docs/results/demo.json."""
    import json

    result = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    texts = result["quality"]["texts"]
    names = [text["text"] for text in texts]
    head = [*(f"perplexity: {name}" for name in names), "KL (mean)", "decode, batch 1", "batch 8"]
    rows = ["| model | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for model in texts[0]["scores"]:
        scores = [text["scores"][model] for text in texts]
        cells = [f"{score['perplexity']:.1f} ± {score['perplexity_error']:.1f}" for score in scores]
        cells.append(f"{sum(score['kl'] for score in scores) / len(scores):.3f}")
        cells += [_decode_speed(result["latency"], model, batch) for batch in (1, 8)]
        rows.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _decode_speed(latency: dict[str, Any], model: str, batch: int) -> str:
    for timing in latency["timings"]:
        if (timing["model"], timing["phase"], timing["batch"]) == (model, "decode", batch):
            return f"{timing['speedup']['parent']:.2f}x" if model != "parent" else "1"
    return ""


def benchmark_table(name: str) -> str:
    """The kept result of a benchmark, docs/results/NAME.json."""
    import json

    result = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    rows = [f"Machine: {result['machine']}.", "", "| figure | measured | goal |", "|---|---|---|"]
    for key, value in result["figures"].items():
        rows.append(
            f"| {key} | {value:.4g} | {'≤ ' + format(result['goals'][key], 'g') if key in result['goals'] else ''} |"
        )
    return "\n".join(rows)


def _grid(grid: Any) -> str:
    rows = ["| " + " | ".join(grid.columns) + " |", "|" + "---|" * len(grid.columns)]
    return "\n".join(rows + ["| " + " | ".join(row) + " |" for row in grid.rows])


def machine_table() -> str:
    """The machines that ``predict`` ships."""
    from ffn_fusion.latency.machines import shipped_machines
    from ffn_fusion.report.prediction_tables import machines_grid

    return _grid(machines_grid(shipped_machines().values()))


def machine_sources(name: str) -> str:
    """Where a machine's constants come from."""
    from ffn_fusion.latency.machines import find_machine
    from ffn_fusion.report.prediction_tables import sources_grid

    return _grid(sources_grid(find_machine(name)))


def hardware_results() -> str:
    """What benchmarks/hardware.py printed of the four models it fits on, from docs/results/hardware.json."""
    kept = json.loads((ROOT / "docs" / "results" / "hardware.json").read_text(encoding="utf-8"))["figures"]
    columns = ("published", "fitted", "error, fitted", "error, left out", "error, nothing fitted")
    rows = ["| tokens/s | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name in [key.split(" | ")[0] for key in kept if key.endswith(" | error, fitted")]:
        values = [kept[f"{name} | {column}"] for column in columns]
        cells = [f"{v:.2f}" if i < 2 else f"{v:+.1%}" for i, v in enumerate(values)]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def hardware_elsewhere() -> str:
    """What it wasn't fitted on."""
    kept = json.loads((ROOT / "docs" / "results" / "hardware.json").read_text(encoding="utf-8"))["figures"]
    names = {
        "H200": "Ultra-253B on 8 x H200, tokens/s",
        "fusion": "speed-up by fusion alone, 8 x H100",
        "51B / 70B throughput": "Nemotron-51B / Llama-3.1-70B, throughput a device",
        "51B throughput": "Nemotron-51B, tokens/s a device",
        "70B throughput": "Llama-3.1-70B, tokens/s a device",
        "70B, one device throughput": "the same on one device",
    }
    rows = ["| | published | predicted | error |", "|---|---|---|---|"]
    for name, what in names.items():
        stated, found = kept[f"{name} | published"], kept[f"{name} | predicted"]
        digits = 0 if stated >= 1000 else 2
        on = f" (best on {kept[f'{name} | devices']:.0f})" if f"{name} | devices" in kept else ""
        rows.append(f"| {what}{on} | {stated:,.{digits}f} | {found:,.{digits}f} | {found / stated - 1:+.1%} |")
    return "\n".join(rows)


def hardware_gpu_results() -> str:
    """What benchmarks/hardware_gpu.py printed on each GPU, from docs/results/hardware_gpu.json."""
    kept = json.loads((ROOT / "docs" / "results" / "hardware_gpu.json").read_text(encoding="utf-8"))
    rows = ["| | " + " | ".join(kept) + " |", "|" + "---|" * (len(kept) + 1)]
    for name in next(iter(kept.values()))["figures"]:
        values = [one["figures"][name] for one in kept.values()]
        rows.append(f"| {name} | " + " | ".join(f"{v:,.0f}" if v >= 100 else f"{v:.2f}" for v in values) + " |")
    return "\n".join(rows)


def hardware_drafts() -> str:
    """The acceptance that the published speed with a draft implies."""
    kept = json.loads((ROOT / "docs" / "results" / "hardware.json").read_text(encoding="utf-8"))["figures"]
    found = {key.split()[2]: value for key, value in kept.items() if key.startswith("draft of")}
    return (
        "| tokens a draft | " + " | ".join(found) + " |\n|" + "---|" * (len(found) + 1) + "\n| acceptance | "
        + " | ".join(f"{value:.2f}" for value in found.values()) + " |"
    )  # fmt: skip


def main() -> int:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages = sorted(str(path) for path in candidates if "[[[cog" in path.read_text(encoding="utf-8"))
    check = ["--check", "--diff"] if "--check" in sys.argv[1:] else ["-r"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "cogapp", *check, *pages], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
