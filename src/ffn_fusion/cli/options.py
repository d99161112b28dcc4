"""Options that several verbs share, so that one word means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="Checkpoint folder, .gguf file or hub id.", metavar="MODEL")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the child goes; must not exist.")]


def _text(word: str) -> Any:
    from ffn_fusion.data.mixture import parse_entry

    return parse_entry(word)


def _scored_text(word: str) -> Any:
    from ffn_fusion.data.mixture import Weighted
    from ffn_fusion.errors import UsageError

    entry = _text(word)
    if isinstance(entry, Weighted):
        raise UsageError(f"{word}: texts are scored one by one, a weight means nothing here", "leave the weight out")
    return entry


Texts = Annotated[
    list[Any] | None,
    typer.Option(
        "--text",
        parser=_text,
        metavar="TEXT[=WEIGHT]",
        help="File or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME; may be given several times.",
    ),
]
Tokens = Annotated[int, typer.Option(help="How many tokens of text.", min=1)]
Context = Annotated[int, typer.Option(help="Tokens in a window.", min=8)]
Seed = Annotated[int, typer.Option(help="Which windows are chosen.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")]
Engines = Annotated[
    list[str] | None, typer.Option(help="Engine that must be able to load the child, or all; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop with the plan, before anything is built.")]
Memory = Annotated[
    str | None,
    typer.Option(help="What a process may use, like 16GiB; default: half of what's free. Weights are streamed to fit."),
]
WidthMultiple = Annotated[
    int,
    typer.Option(help="Pad FFN widths to a multiple of this; 1 keeps them (not every engine loads that).", min=1),
]
ScoredTexts = Annotated[
    list[Any] | None,
    typer.Option(
        "--text",
        parser=_scored_text,
        metavar="TEXT",
        help="File or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME; may be given several times.",
    ),
]
EvalTexts = Annotated[
    list[Any] | None,
    typer.Option(parser=_scored_text, metavar="TEXT", help="Held-out text to score on; may be repeated."),
]
RepairTexts = Annotated[
    list[Any] | None,
    typer.Option(
        "--text",
        parser=_text,
        metavar="TEXT[=WEIGHT]",
        help="Repair the child on this text: file, folder or hub:OWNER/NAME; may be given several times.",
    ),
]
Repair = Annotated[
    bool, typer.Option("--repair/--no-repair", help="With text: solve the changed blocks anew on it, in closed form.")
]
