"""``ffn-fusion verify``: is a child on disk what its manifest, its blueprint and its parent say it is?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.options import Context, Revision, Seed, Texts

if TYPE_CHECKING:
    from ffn_fusion.portability.verify import Against


def verify(
    child: Annotated[Path, typer.Argument(help="Child that ffn-fusion wrote.", metavar="OUT")],
    parent: Annotated[
        str | None, typer.Option(help="The model it was made of: compare weights and logits with it too.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What runs the child, to compare its logits.")] = "transformers",
    text: Texts = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of every text.", min=16)] = 128,
    context: Context = 32,
    seed: Seed = 0,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a child's files against its manifest; with --parent, its weights and its logits against the parent."""
    from ffn_fusion.errors import CheckError
    from ffn_fusion.portability.verify import verify as find

    against = _against(parent, revision, engine, text, tokens, context, seed) if parent else None
    found = []
    with progress_bars() as bars:
        total = sum(path.stat().st_size for path in child.glob("*.safetensors"))
        done = 0

        def count(compared: int) -> None:
            nonlocal done
            done += compared
            bars("comparing", done, max(total, done))

        for finding in find(child, against, count):
            found.append(finding)
            if not as_json:
                say(f"{'ok    ' if finding.ok else 'FAILED'}  {finding.check}: {finding.words}", err=False)
    failed = [finding.check for finding in found if not finding.ok]
    if as_json:
        checks = [{"check": f.check, "ok": f.ok, "words": f.words} for f in found]
        emit({"name": str(child), "ok": not failed, "checks": checks})
    if failed:
        raise CheckError(f"{child}: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}", _HINT)


_HINT = "get the child again from where it was whole, or build it again"


def _against(
    parent: str, revision: str | None, engine: str, text: list[Path] | None, tokens: int, context: int, seed: int
) -> Against:
    """The parent and tokens of text, or random ones where it has no tokenizer."""
    import torch

    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.errors import CheckpointError
    from ffn_fusion.pipeline.recipe import EvaluationSection
    from ffn_fusion.pipeline.stages import held_out_windows
    from ffn_fusion.portability.engines import runnable
    from ffn_fusion.portability.verify import Against

    name = runnable(engine)
    opened = open_model(parent, revision=revision)
    section = EvaluationSection(texts=tuple(text or ()), tokens=tokens, context=context)
    try:
        windows = held_out_windows(opened.folder, section, seed)
    except CheckpointError:  # no tokenizer
        if text:
            raise
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(opened.spec.vocab_size, (max(1, tokens // context), context), generator=generator)
        return Against(opened, ids, f"{ids.numel()} random tokens (the parent has no tokenizer)", name)
    ids = torch.cat([torch.from_numpy(found.ids_NT) for found in windows])
    return Against(opened, ids, f"{ids.numel()} tokens of text", name)
