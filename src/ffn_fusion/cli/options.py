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
Drop = Annotated[
    float,
    typer.Option("--drop-attention", help="Attentions to drop: a number, or a fraction below 1.", min=0),
]
DropBlocks = Annotated[str, typer.Option(help="Blocks that lose their attention, e.g. 5-10,17.")]
Runs = Annotated[str, typer.Option("--runs", help="Runs whose FFNs are fused, like 5-9,17-19.")]
Speedup = Annotated[
    float | None,
    typer.Option(help="Instead of --drop-attention: a speed-up by the simple cost count.", min=1),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Instead of --drop-attention and --fuse: at most so many sequential steps.", min=1),
]
Fuse = Annotated[str, typer.Option(help="FFN steps to fuse away: a number, or auto.")]
MaxDamage = Annotated[float, typer.Option(help="Fuse no run with a measured KL above this (nats a token).", min=0)]
Repaired = Annotated[
    bool, typer.Option("--repair/--no-repair", help="Judge changes by the damage they do after the repair.")
]
Engines = Annotated[
    list[str] | None, typer.Option(help="Engine that must be able to load the child, or all; repeatable.")
]
MaxWidth = Annotated[int | None, typer.Option(help="Widest fused FFN; wider runs are split.", min=1)]
WidthCurve = Annotated[
    Path | None, typer.Option(help="File of `ffn-fusion max-width -o`, which sets the widest fused FFN.")
]
Norm = Annotated[str, typer.Option(help="Norm of a fused FFN: own (exact) or last (as the paper).")]
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
