"""Every form that a checkpoint can be exported to, behind one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.staging import MAX_SHARD_BYTES
from ffn_fusion.errors import CheckError, UsageError
from ffn_fusion.export.folder import FolderPlan, plan_folder, write_folder
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.families import family_of
from ffn_fusion.gguf.write import GgufPlan, write_gguf
from ffn_fusion.portability.history import FORMS as FOLDERS

FORMS = ("gguf", *FOLDERS)
Plan = GgufPlan | FolderPlan
Progress = Callable[[str, int, int], None]

_NO_PER_LAYER = (
    "transformers runs no Llama whose blocks differ by per_layer_config: 5.19 to 5.23 read it in config.json, "
    "but don't build the blocks of a Llama from it"
)


def check_form(to: str) -> None:
    """Raises: UsageError: there's no form ``to``."""
    if to == "per-layer-config":
        raise UsageError(_NO_PER_LAYER, "--to nemotron-nas loads with the code in the folder, --to llama --pad without")
    if to not in FORMS:
        raise UsageError(f"no form {to!r} to export to", f"known are {', '.join(FORMS)}")


def plan_export(
    checkpoint: Checkpoint,
    to: str,
    *,
    dtype: str | None = None,
    pad: bool = False,
    max_shard_bytes: int | None = None,
    pre_tokenizer: str | None = None,
    quantizer: Path | None = None,
) -> Plan:
    """Decide how a checkpoint takes the form ``to``, and refuse what would come out wrong. Nothing is written.

    Args:
        to: ``gguf`` (one file, for llama.cpp), ``nemotron-nas`` (the form that children are built in) or ``llama`` (a
            plain Llama, without code of its own).
        dtype: how weights are stored: f32, f16 or bf16, in GGUF also q8_0 and k-quants. None: as they are.
        pad: for ``llama``: make blocks that differ alike, with zeros.
        max_shard_bytes: of folders: the largest file of weights.
        pre_tokenizer, quantizer: of GGUF, see :func:`ffn_fusion.export.gguf.plan_gguf`.

    Raises:
        UsageError: no such form or dtype, or an option of another form.
        CheckError: the form can't hold the model; it names the blocks.
        CheckpointError, MissingExtraError: see :func:`ffn_fusion.export.gguf.plan_gguf`.
    """
    check_form(to)
    if to != "gguf" and family_of(checkpoint.spec).form:
        raise CheckError(
            f"{checkpoint.name}: a {checkpoint.spec.family} model keeps its family's own form; {to} can't hold it",
            "it loads in transformers as it is",
        )
    form = next((form for form in FOLDERS if form == to), None)
    if pad and to != "llama":
        raise UsageError(f"--pad isn't for --to {to}", "it makes the blocks of --to llama alike; leave it out")
    if form is None:
        if max_shard_bytes is not None:
            raise UsageError("--max-shard-bytes isn't for --to gguf", "GGUF is one file; leave it out")
        return plan_gguf(checkpoint, dtype=dtype, pre_tokenizer=pre_tokenizer, quantizer=quantizer)
    if pre_tokenizer is not None or quantizer is not None:
        raise UsageError(f"--pre-tokenizer and --llama-quantize aren't for --to {to}", "leave them out")
    return plan_folder(checkpoint, form, dtype=dtype, pad=pad, max_shard_bytes=max_shard_bytes or MAX_SHARD_BYTES)


def write_export(plan: Plan, target: Path, on_progress: Progress = lambda what, done, total: None) -> Path:
    """Carry a plan out: the file or folder appears whole, or not at all.

    Args:
        on_progress: called with what is being done, the bytes done and the bytes in all.

    Raises:
        CheckpointError: a weight is NaN, infinite, or beyond the dtype.
        OutputError: the target exists, lies inside the checkpoint, can't be written, or the disk is too small.
    """
    if isinstance(plan, GgufPlan):
        return write_gguf(plan, target, on_progress)
    done, total = 0, plan.nbytes

    def count(written: int) -> None:
        nonlocal done
        done += written
        on_progress("exporting", done, total)

    return write_folder(plan, target, count)


def export_model(
    checkpoint: Checkpoint,
    target: Path,
    to: str,
    *,
    dtype: str | None = None,
    pad: bool = False,
    max_shard_bytes: int | None = None,
    pre_tokenizer: str | None = None,
    quantizer: Path | None = None,
) -> Path:
    """Write a checkpoint in the form ``to``: ``gguf``, ``nemotron-nas`` or ``llama``. Streamed, whole or not at all.

    Arguments and errors are those of :func:`plan_export` and :func:`write_export`.
    """
    plan = plan_export(
        checkpoint,
        to,
        dtype=dtype,
        pad=pad,
        max_shard_bytes=max_shard_bytes,
        pre_tokenizer=pre_tokenizer,
        quantizer=quantizer,
    )
    return write_export(plan, target)
