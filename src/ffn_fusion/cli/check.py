"""``ffn-fusion check``: which engines load a child, and the same child in a form that more of them load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.options import Revision

if TYPE_CHECKING:
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.portability.rule import Engine, EngineCheck

EngineNames = Annotated[
    list[str] | None,
    typer.Option("--for-engine", help="Engine that must be able to load it, or all; repeatable."),
]


def check(
    child: Annotated[str, typer.Argument(help="Child: checkpoint folder or hub id.", metavar="OUT")],
    engine: EngineNames = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write it anew, exactly, so that more engines load it.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the fixed child goes; must not exist.")
    ] = None,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Say which inference engines load a child, and if not, at which block and why."""
    from ffn_fusion.errors import UsageError
    from ffn_fusion.portability.check import check as find
    from ffn_fusion.portability.rules import ENGINES, parse_engines
    from ffn_fusion.sources import open_model

    asked = parse_engines(engine or ())
    if fix != (output is not None):
        raise UsageError("--fix and -o go together", "give both: --fix -o FIXED")
    checkpoint = open_model(child, revision=revision)
    steps: tuple[str, ...] = ()
    if output is not None:
        checkpoint, steps = _fix(checkpoint, output, asked)
    found = find(checkpoint, asked or ENGINES)
    if as_json:
        emit(_as_json(checkpoint.name, found, output, steps))
    else:
        _show(checkpoint.name, found, output, steps)
    if asked:
        _demand(checkpoint.name, found)


def _fix(checkpoint: Checkpoint, output: Path, asked: Sequence[Engine]) -> tuple[Checkpoint, tuple[str, ...]]:
    from ffn_fusion.portability.check import fix

    done, total = 0, checkpoint.nbytes
    with progress_bars() as bars:

        def count(written: int) -> None:
            nonlocal done
            done += written
            bars("fixing", done, max(total, done))

        return fix(checkpoint, output, asked, on_bytes=count)


def _demand(name: str, found: Sequence[EngineCheck]) -> None:
    from ffn_fusion.errors import CheckError

    failed = [row for row in found if row.verdict != "loads"]
    if failed:
        names = ", ".join(row.engine for row in failed)
        can = all(row.verdict == "loads after --fix" for row in failed)
        hint = f"ffn-fusion check {name} --fix -o FIXED writes one that they load" if can else "plan another child"
        raise CheckError(f"{name}: can't be loaded as it is by {names}", hint)


def _show(name: str, found: Sequence[EngineCheck], output: Path | None, steps: Sequence[str]) -> None:
    from ffn_fusion.report.model_grids import engines_grid

    say(engines_grid(found), err=False)
    for row in found:
        for note in row.notes:
            say(f"{row.engine}: {note}", err=False)
    if output is not None:
        say("", *(f"- {step}" for step in steps), f"fixed: {output}", err=False)
    elif any(row.verdict == "loads after --fix" for row in found):
        say(
            f"ffn-fusion check {name} --fix -o FIXED writes one that more engines load; logits stay the same", err=False
        )


def _as_json(name: str, found: Sequence[EngineCheck], output: Path | None, steps: Sequence[str]) -> dict[str, Any]:
    engines = {
        row.engine: {
            "verdict": row.verdict,
            "problems": [
                {"rule": p.rule, "block": p.block, "reason": p.reason, "fixable": p.fixable} for p in row.problems
            ],
            "notes": list(row.notes),
        }
        for row in found
    }
    return {"name": name, "engines": engines, "fixed": str(output) if output else None, "steps": list(steps)}
