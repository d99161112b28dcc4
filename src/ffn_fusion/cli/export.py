"""``ffn-fusion export``: a checkpoint in another engine's own form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, progress_bars, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import DryRun, Model, Revision

if TYPE_CHECKING:
    from ffn_fusion.export.folder import FolderPlan
    from ffn_fusion.export.forms import Plan
    from ffn_fusion.gguf.write import GgufPlan

Form = Annotated[
    str,
    typer.Option(
        "--to", help="The form: gguf (for llama.cpp), nemotron-nas (as children are built) or llama (a plain Llama)."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where it goes; must not exist.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="How weights are stored: f32, f16, bf16, in GGUF also q8_0, q4_k_m, ...; default: as they are."),
]
Pad = Annotated[bool, typer.Option("--pad", help="For llama: make blocks that differ alike, exactly, with zeros.")]
ShardSize = Annotated[
    int | None,
    typer.Option("--max-shard-bytes", help="Largest file of weights in a folder; default: 5 GB.", min=1 << 20),
]
PreTokenizer = Annotated[
    str | None,
    typer.Option(help="For gguf: llama.cpp's name of the pre-tokenizer, where it isn't found by itself."),
]
Quantizer = Annotated[
    Path | None,
    typer.Option("--llama-quantize", help="llama.cpp's program for k-quants; default: $LLAMA_QUANTIZE, or the PATH."),
]


@options
def export(
    model: Model,
    to: Form,
    output: Output,
    opening: OpenSettings,
    dtype: Dtype = None,
    pad: Pad = False,
    max_shard_bytes: ShardSize = None,
    pre_tokenizer: PreTokenizer = None,
    llama_quantize: Quantizer = None,
    revision: Revision = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint in the form that another engine loads."""
    from ffn_fusion.checkpoint.staging import check_target
    from ffn_fusion.export.forms import check_form, plan_export, write_export
    from ffn_fusion.sources import open_model

    check_form(to)
    checkpoint = open_model(model, revision=revision, opening=opening)
    check_target(output, checkpoint.folder)
    plan = plan_export(
        checkpoint,
        to,
        dtype=dtype,
        pad=pad,
        max_shard_bytes=max_shard_bytes,
        pre_tokenizer=pre_tokenizer,
        quantizer=llama_quantize,
    )
    about, lines = _about(plan)
    if not as_json:
        say(*lines)
    if not dry_run:
        with progress_bars() as bars:
            write_export(plan, output, bars)
    if as_json:
        emit({"output": None if dry_run else str(output), "form": to, **about, "bytes": _bytes(plan, output, dry_run)})
    elif not dry_run:
        say(f"{'GGUF' if to == 'gguf' else to}: {output}", err=False)


def _about(plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """What will be written: for a program, and for a person."""
    from ffn_fusion.export.folder import FolderPlan

    return _about_folder(plan) if isinstance(plan, FolderPlan) else _about_gguf(plan)


def _about_gguf(plan: GgufPlan) -> tuple[dict[str, Any], list[str]]:
    vocabulary, blocks = plan.vocabulary, len(plan.checkpoint.spec.blocks)
    absent, zeros = plan.filled
    about = "about " if plan.quantizer else ""
    lines = [
        f"llama.cpp architecture {plan.architecture}, {blocks} blocks, {len(plan.tensors)} tensors, "
        f"{about}{plan.nbytes / 1e9:,.2f} GB as {plan.dtype}",
        f"vocabulary {vocabulary.model}, pre-tokenizer {vocabulary.pre}, {len(vocabulary.tokens):,} tokens",
    ]
    if absent:
        sub_blocks = f"{absent} absent sub-block{'s' * (absent > 1)}"
        lines.append(f"zeros for {sub_blocks}, which {plan.architecture} can't leave out: {zeros:,} bytes")
    said = {"architecture": plan.architecture, "dtype": plan.dtype, "zeros": {"sub_blocks": absent, "bytes": zeros}}
    return said | {"vocabulary": vocabulary.model, "pre_tokenizer": vocabulary.pre}, lines


def _about_folder(plan: FolderPlan) -> tuple[dict[str, Any], list[str]]:
    architecture = "DeciLMForCausalLM" if plan.form == "nemotron-nas" else "LlamaForCausalLM"
    dtype = (plan.dtype or plan.checkpoint.dtype).lower()
    blocks, tensors = len(plan.fixed.spec.blocks), len(plan.fixed.tensors)
    lines = [
        f"{architecture}, {blocks} blocks, {tensors} tensors, {plan.nbytes / 1e9:,.2f} GB as {dtype}",
        *(f"- {step}" for step in plan.steps or ("every tensor as it is",)),
    ]
    return {"architecture": architecture, "dtype": dtype, "steps": list(plan.steps)}, lines


def _bytes(plan: Plan, output: Path, dry_run: bool) -> int:
    """Of a GGUF file as it lies there, header and all; of a folder's weights."""
    return output.stat().st_size if output.is_file() and not dry_run else plan.nbytes
