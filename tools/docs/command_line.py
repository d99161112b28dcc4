"""docs/cli.md and docs/errors.md."""

from __future__ import annotations

import re

from tools.docs.tables import table


def help_texts() -> str:
    """What ``--help`` says, verb by verb."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from ffn_fusion.cli.main import app

    verbs = list(get_command(app).commands)  # type: ignore[attr-defined]
    runner = CliRunner(env={"COLUMNS": "110", "TERMINAL_WIDTH": "110"})
    parts = []
    for verb in verbs:
        text = runner.invoke(app, [verb, "--help"]).stdout.rstrip()
        parts.append(f"## ffn-fusion {verb}\n\n```text\n{re.sub(r'[ ]+$', '', text, flags=re.M).strip()}\n```\n")
    return "\n".join(parts)


def exit_codes() -> str:
    from ffn_fusion.errors import EXIT_CODES

    return table(("code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items()))
