"""docs/cli.md and docs/errors.md."""

from __future__ import annotations

import re

from tools.docs.tables import table

VERBS = (
    "run", "optimize", "inspect", "analyze", "plan", "explain", "parallel", "widths", "build", "fuse", "repair",
    "distill", "export", "check", "verify", "eval", "score", "bench", "predict", "report",
)  # fmt: skip


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


def exit_codes() -> str:
    from ffn_fusion.errors import EXIT_CODES

    return table(("code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items()))
