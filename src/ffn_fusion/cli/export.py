"""``ffn-fusion export``: a checkpoint in another engine's own form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.options import DryRun, Model, Revision

Form = Annotated[str, typer.Option("--to", help="The form: gguf (for llama.cpp).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where it goes; must not exist.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="How weights are stored: f32, f16, bf16, q8_0, q4_k_m, ...; default: as they are."),
]
PreTokenizer = Annotated[
    str | None,
    typer.Option(help="llama.cpp's name of the pre-tokenizer, where it isn't found by itself."),
]
Quantizer = Annotated[
    Path | None,
    typer.Option("--llama-quantize", help="llama.cpp's program for k-quants; default: $LLAMA_QUANTIZE, or the PATH."),
]


def export(
    model: Model,
    to: Form,
    output: Output,
    dtype: Dtype = None,
    pre_tokenizer: PreTokenizer = None,
    llama_quantize: Quantizer = None,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint in the form that another engine loads."""
    from ffn_fusion.errors import UsageError

    if to != "gguf":
        raise UsageError(f"no form {to!r} to export to", "known is gguf")
    _gguf(model, output, dtype, pre_tokenizer, llama_quantize, revision, dry_run, as_json)


def _gguf(
    model: str,
    output: Path,
    dtype: str | None,
    pre_tokenizer: str | None,
    quantizer: Path | None,
    revision: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from ffn_fusion.checkpoint.source import open_model
    from ffn_fusion.checkpoint.staging import check_target
    from ffn_fusion.export.gguf_writer import plan_gguf, write_gguf

    checkpoint = open_model(model, revision=revision)
    check_target(output, checkpoint.folder)
    plan = plan_gguf(checkpoint, dtype=dtype, pre_tokenizer=pre_tokenizer, quantizer=quantizer)
    vocabulary = plan.vocabulary
    if not as_json:
        blocks = len(checkpoint.spec.blocks)
        about = "about " if plan.quantizer else ""
        say(
            f"llama.cpp architecture {plan.architecture}, {blocks} blocks, {len(plan.tensors)} tensors, "
            f"{about}{plan.nbytes / 1e9:,.2f} GB as {plan.dtype}",
            f"vocabulary {vocabulary.model}, pre-tokenizer {vocabulary.pre}, {len(vocabulary.tokens):,} tokens",
        )
    if not dry_run:
        with progress_bars() as bars:
            write_gguf(plan, output, bars)
    if as_json:
        emit(
            {
                "output": None if dry_run else str(output),
                "architecture": plan.architecture,
                "dtype": plan.dtype,
                "bytes": plan.nbytes if dry_run else output.stat().st_size,
                "vocabulary": vocabulary.model,
                "pre_tokenizer": vocabulary.pre,
            }
        )
    elif not dry_run:
        say(f"GGUF: {output}", err=False)
