"""A checkpoint as a folder in another form: the one that children are built in, or a plain Llama's; or the same form
in another dtype or other files. Streamed, whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, inside
from ffn_fusion.checkpoint.sidecars import child_files, read_licence
from ffn_fusion.checkpoint.staging import DISTILLATION, MAX_SHARD_BYTES, MODEL_CARD, read_manifest
from ffn_fusion.checkpoint.write import build_key, json_file, write_checkpoint
from ffn_fusion.distillation.checks import read_record
from ffn_fusion.errors import CheckpointError, UsageError
from ffn_fusion.export.plain_llama import plan_llama
from ffn_fusion.families import ModelSpec, llama
from ffn_fusion.portability.fix import Fixed, native_files
from ffn_fusion.portability.history import FIXES, REWRITTEN, Form, Rewriting, history_json, read_history
from ffn_fusion.portability.rewrite import plan_rewrite
from ffn_fusion.report.model_card import model_card
from ffn_fusion.surgery.build import BLUEPRINT
from ffn_fusion.surgery.repairs import RECORD

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""What a person calls a dtype -> what safetensors calls it."""
_CONFIG_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class FolderPlan:
    """What will be written. ``dtype`` is what all weights become (``"BF16"``); None: they stay as they are."""

    checkpoint: Checkpoint
    form: Form
    dtype: str | None
    fixed: Fixed
    max_shard_bytes: int

    @property
    def nbytes(self) -> int:
        return self.fixed.nbytes

    @property
    def steps(self) -> tuple[str, ...]:
        """What is rewritten, in words."""
        had = sorted({info.dtype for info in self.checkpoint.tensors.values()})
        same = self.dtype is None or had == [self.dtype]
        converted = () if same else (f"weights of {' and '.join(had)} stored as {self.dtype}",)
        return self.fixed.rewrite.steps + converted


def plan_folder(
    checkpoint: Checkpoint,
    form: Form,
    *,
    dtype: str | None = None,
    pad: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> FolderPlan:
    """Decide how a checkpoint takes a form. What it computes stays the same, but for rounding to another dtype.

    Args:
        dtype: one of ``DTYPES``; None leaves every tensor its own.
        pad: make blocks that differ alike, with zeros, for a plain Llama.

    Raises:
        CheckError: it isn't a plain Llama, with the blocks that aren't and what padding would cost.
        UsageError: no such dtype.
    """
    stored = DTYPES.get(dtype.lower()) if dtype else None
    if dtype and stored is None:
        raise UsageError(f"no dtype {dtype!r} in this form", f"known are {', '.join(DTYPES)}")
    spec = checkpoint.spec
    rewrite = plan_llama(checkpoint.name, spec, pad=pad) if form == "llama" else plan_rewrite(spec, ())
    if stored:
        rewrite = replace(rewrite, spec=_stored_as(rewrite.spec, stored))
    return FolderPlan(checkpoint, form, stored, Fixed(checkpoint, rewrite, stored), max_shard_bytes)


def write_folder(plan: FolderPlan, target: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Path:
    """Write the folder: whole, or not at all. A killed call resumes at the last finished shard.

    The tokenizer, the licence and the record of how the model was made travel along; the model card is written anew.

    Args:
        on_bytes: called with every count of bytes written.

    Raises:
        CheckpointError: a weight is NaN, infinite, or beyond the dtype.
        OutputError: the target exists, overlaps the checkpoint, or the disk is too small.
    """
    return write_checkpoint(
        plan.fixed.output(plan.checkpoint),
        list(_files(plan, target.name)),  # a broken one is found before the weights are written
        _manifest(plan),
        target,
        parent=plan.checkpoint.folder,
        state=plan.checkpoint.files_state,
        max_shard_bytes=plan.max_shard_bytes,
        on_bytes=on_bytes,
    )


def _stored_as(spec: ModelSpec, dtype: str) -> ModelSpec:
    """config.json names the dtype, under whichever name it did."""
    keys = [key for key in ("dtype", "torch_dtype") if key in spec.config] or ["dtype"]
    return replace(spec, config={**spec.config, **dict.fromkeys(keys, _CONFIG_DTYPES[dtype])})


def _files(plan: FolderPlan, name: str) -> Iterator[tuple[str, bytes]]:
    spec = plan.fixed.spec
    yield from child_files(plan.checkpoint, RECORD, DISTILLATION, FIXES)
    if plan.form == "llama":
        yield json_file("config.json", llama.write(spec, 1))
    else:
        yield from native_files(spec)
    blueprint = _blueprint(plan.checkpoint)
    yield BLUEPRINT, blueprint.to_json().encode()
    yield MODEL_CARD, _card(plan, name, blueprint).encode()


def _blueprint(checkpoint: Checkpoint) -> Blueprint:
    """A child's own; of any other model the one that keeps everything."""
    if (checkpoint.folder / BLUEPRINT).is_file():
        return Blueprint.load(inside(checkpoint.folder, BLUEPRINT))
    return Blueprint.identity(checkpoint.spec.parent(checkpoint.name, checkpoint.revision))


def _card(plan: FolderPlan, name: str, blueprint: Blueprint) -> str:
    return model_card(
        name,
        blueprint,
        version("ffn-fusion"),
        read_licence(plan.checkpoint.folder),
        repairs=_repairs(plan.checkpoint.folder),
        distillation=read_record(plan.checkpoint.folder),
        form=plan.form,
        rewritten=plan.steps,
    )


def _repairs(folder: Path) -> dict[str, Any] | None:
    """The record of what repair did; None of a model that wasn't repaired."""
    if not (folder / RECORD).is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(inside(folder, RECORD).read_bytes())
        len(record["files"]), int(record["calibration"]["tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD}: can't be read", "get the child again, or build it again") from error
    return record


def _manifest(plan: FolderPlan) -> dict[str, Any]:
    """As a build's, with what the model was rewritten to; the parent of a child is the one that it was made of."""
    checkpoint = plan.checkpoint
    before = read_manifest(checkpoint.folder) or {}
    itself = {"name": checkpoint.name, "revision": checkpoint.revision, "fingerprint": checkpoint.fingerprint}
    is_child = (checkpoint.folder / BLUEPRINT).is_file()
    history = (*read_history(checkpoint.folder), Rewriting(form=plan.form, dtype=plan.dtype))
    return {
        "build": build_key(checkpoint.fingerprint, plan.form, plan.dtype, plan.max_shard_bytes, plan.steps),
        "parent": before.get("parent") if is_child else itself,
        "exported": {"steps": list(plan.steps), "build": before.get("build"), "fingerprint": checkpoint.fingerprint},
        REWRITTEN: history_json(history),
    }
