"""``ffn-fusion verify``: is a child on disk what its manifest, its blueprint and its parent say it is?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import Only, options
from ffn_fusion.cli.options import Revision
from ffn_fusion.evaluation.settings import ScoredTextSettings
from ffn_fusion.settings import ComputeSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.portability.rule import Engine
    from ffn_fusion.portability.verify import Finding

    Prompts = Callable[[Checkpoint], tuple[Tensor, str]]

EngineName = Annotated[
    str, typer.Option("--engine", help="What runs the child: transformers, or vllm or llama.cpp to compare with it.")
]
Program = Annotated[
    Path | None,
    typer.Option(
        "--engine-program",
        help="vLLM's Python (default: $FFN_FUSION_VLLM_PYTHON, or this one), or llama.cpp's llama-server "
        "(default: $LLAMA_SERVER, or the PATH).",
    ),
]


class _Texts(ScoredTextSettings):
    """A few tokens are enough to compare logits."""

    tokens: int = Field(128, ge=16, description="Number of tokens of each text.")
    context: int = Field(32, ge=8, description="Tokens per window.")


@options
def verify(
    child: Annotated[Path, typer.Argument(help="Child that ffn-fusion wrote.", metavar="OUT")],
    texts: _Texts,
    compute: Annotated[ComputeSettings, Only("seed")],
    opening: OpenSettings,
    parent: Annotated[
        str | None, typer.Option(help="The model it was made of: compare weights and logits with it too.")
    ] = None,
    engine: EngineName = "transformers",
    engine_program: Program = None,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a child's files against its manifest; with --parent, its weights and its logits against the parent; with
    --engine, its logits and greedy text in another engine.
    """
    from ffn_fusion.engines.compare import parse_runnable
    from ffn_fusion.errors import CheckError, UsageError
    from ffn_fusion.sources import open_model

    runs = parse_runnable(engine)
    if engine_program and runs == "transformers":
        raise UsageError("--engine-program without --engine", "give --engine vllm or --engine llama.cpp too")
    opened = open_model(parent, revision=revision, opening=opening) if parent else None
    prompts = partial(_prompts, texts=texts, seed=compute.seed)
    found: list[Finding] = []
    for finding in _findings(child, opened, runs, engine_program, prompts):
        found.append(finding)
        if not as_json:
            say(f"{'ok    ' if finding.ok else 'FAILED'}  {finding.check}: {finding.words}", err=False)
    failed = [finding.check for finding in found if not finding.ok]
    if as_json:
        checks = [{"check": f.check, "ok": f.ok, "words": f.words, "figures": dict(f.figures)} for f in found]
        emit({"name": str(child), "ok": not failed, "checks": checks})
    if failed:
        raise CheckError(f"{child}: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}", _HINT)


_HINT = "get the child again from where it was whole, or build it again"


def _findings(
    child: Path, parent: Checkpoint | None, engine: Engine, program: Path | None, prompts: Prompts
) -> Iterator[Finding]:
    """What the files say, then what the engine says of a child whose files are as they should be."""
    from ffn_fusion.checkpoint.reader import open_folder
    from ffn_fusion.engines.compare import verify_engine
    from ffn_fusion.portability.verify import Against
    from ffn_fusion.portability.verify import verify as find

    against = Against(parent, *prompts(parent)) if parent else None
    fine = True
    with progress_bars() as bars:
        total = sum(path.stat().st_size for path in child.glob("*.safetensors"))
        done = 0

        def count(compared: int) -> None:
            nonlocal done
            done += compared
            bars("comparing", done, max(total, done))

        for finding in find(child, against, count):
            fine = fine and finding.ok
            yield finding
    if fine and engine != "transformers":
        say(f"running it in {engine}")
        yield verify_engine(child, engine, *prompts(open_folder(child)), program)


def _prompts(model: Checkpoint, texts: ScoredTextSettings, seed: int) -> tuple[Tensor, str]:
    """Tokens [N, T] of text, or random ones where the model has no tokenizer; and what they are, in words."""
    import torch

    from ffn_fusion.errors import CheckpointError
    from ffn_fusion.pipeline.texts import held_out_windows

    try:
        windows = held_out_windows(model, texts, seed)
    except CheckpointError:  # no tokenizer
        if texts.texts:
            raise
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(
            model.spec.vocab_size, (max(1, texts.tokens // texts.context), texts.context), generator=generator
        )
        return ids, f"{ids.numel()} random tokens ({model.name} has no tokenizer)"
    ids = torch.cat([torch.from_numpy(found.ids_NT) for found in windows])
    return ids, f"{ids.numel()} tokens of text"
