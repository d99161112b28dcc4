"""The generated parts of docs/: cog writes what these functions return between its markers.

``python tools/docs.py`` rewrites them, ``--check`` only says whether they are up to date (a test runs it).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VERBS = (
    "run", "optimize", "inspect", "analyze", "plan", "explain", "windows", "build", "fuse", "eval", "bench", "report",
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


def main() -> int:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages = sorted(str(path) for path in candidates if "[[[cog" in path.read_text(encoding="utf-8"))
    check = ["--check", "--diff"] if "--check" in sys.argv[1:] else ["-r"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "cogapp", *check, *pages], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
