"""Distil a child: check child, parent and text, train, and leave a checkpoint to write the child from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import read_manifest
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.distillation.checkpoints import Saved, newest, prepare
from ffn_fusion.distillation.checks import check_extras, read_record
from ffn_fusion.distillation.lora import Merged, with_adapters
from ffn_fusion.distillation.run import Run
from ffn_fusion.distillation.settings import PARTS, DistillSettings
from ffn_fusion.distillation.sharding import forget_deepspeed, load_sharded, take_over
from ffn_fusion.distillation.teacher import NoTeacher, OnlineTeacher, Teacher, load_causal
from ffn_fusion.distillation.teacher_cache import CachedTeacher, CacheSettings, TeacherCache
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.distillation.write import Weights
from ffn_fusion.distillation.write_cache import Writing
from ffn_fusion.processes import Progress, current, silent, together


@dataclass(frozen=True)
class Distilled:
    """The result of a training: float32 weights, read from its last checkpoint, and the record."""

    weights: Weights
    record: dict[str, Any]


@together
def distill_child(
    child: Path,
    parent: Checkpoint,
    texts: Sequence[TokenWindows],
    work: Path,
    *,
    settings: DistillSettings = DistillSettings(),
    seed: int = 0,
    teacher_dtype: torch.dtype = torch.float32,
    cache: CacheSettings | None = None,
    device: str = "cpu",
    memory: int | None = None,
    tracking: Tracking | None = None,
    progress: Progress = silent,
) -> Distilled:
    """Train a child's weights to match its parent's predictions, with both in memory or the parent's predictions on
    disk.

    Args:
        child: a folder that ``build`` wrote. texts: training windows, all of one length.
        work: the folder for checkpoints. An interrupted call continues from the last complete one, on a CPU with the
            same bits; anything else in the folder is removed. ``Distilled`` reads from it.
        cache: train on the parent's distributions stored there; they are written first if necessary.
        device: cpu or cuda.
        memory: bytes that a process may use while it writes the cache (default: half of the free memory).
        tracking: where to log progress.
        progress: counts windows of the cache, then optimiser steps.

    Raises:
        CheckpointError: the child was made from another parent, or the vocabularies differ. BlueprintError: the child
            has no blueprint. DataError: too little text. UsageError: inconsistent settings. TrainingError: a loss is
            not finite.
        OutputError: the disk is full. MissingExtraError: accelerate, peft (for LoRA) or the tracking tool is missing.
    """
    run = Run(child, parent, texts, work, settings, teacher_dtype, cache, device, memory, tracking, seed=seed)
    run.check()
    return _carried_out(run, progress)


@together
def train(run: Run, *, progress: Progress = silent) -> Distilled:
    """Carry out a training; see :func:`distill_child` for the errors."""
    run.check()
    return _carried_out(run, progress)


def _carried_out(run: Run, progress: Progress) -> Distilled:
    here = current()
    check_extras(run.settings, run.tracking)
    here.gather([None])  # all have looked at the folder, and nobody has anything against it
    if not here.rank:
        prepare(run.work, run.key())
    here.gather([None])  # the folder is there, and what isn't ours is gone
    saved = newest(run.work)
    if saved is None or saved.step < run.steps:
        _train(run, saved, _written(run, progress), progress)
    here.gather([None])
    saved = newest(run.work)
    assert saved is not None
    return Distilled(weights_of(run, saved), _record(run, saved))


def weights_of(run: Run, saved: Saved) -> Weights:
    """Return the weights of a checkpoint in float32."""
    if run.settings.lora:
        return Merged(open_folder(run.begins), saved.folder, run.settings, run.master)
    return open_folder(saved.folder)


def _written(run: Run, progress: Progress) -> TeacherCache | None:
    """Return the complete cache, writing it if necessary."""
    if run.cache is None:
        return None
    writing = Writing(run.parent, run.ids_NT, run.cache, run.teacher_dtype, run.device, run.memory)
    return writing.written(progress)


def _teacher(run: Run, cache: TeacherCache | None) -> Teacher:
    if cache is not None:
        return CachedTeacher(cache, run.place)
    if not run.teacher_beside:
        return NoTeacher()
    blocks = [depth.parent for depth in run.depths]
    return OnlineTeacher(run.parent.folder, blocks, run.teacher_dtype, run.place, shard=run.shards_teacher)


def _train(run: Run, saved: Saved | None, cache: TeacherCache | None, progress: Progress) -> None:
    from ffn_fusion.distillation.sharded_trainer import ShardedTrainer
    from ffn_fusion.distillation.trainer import DistillTrainer, Windows, training_arguments
    from ffn_fusion.distillation.watching import watchers

    if run.settings.shard:
        take_over()
    lora, step = run.settings.lora, saved.step if saved else 0
    torch.manual_seed(run.seed)
    forget_deepspeed()
    teacher = _teacher(run, cache)
    arguments = training_arguments(run.settings, run.seed, run.work, run.device, run.steps, run.accumulation)
    # Behind the arguments: where DeepSpeed shards, transformers knows by now, and loads the child in parts.
    model = _load(run, saved.folder if saved and not lora else run.begins)
    model.config.use_cache = False
    if run.settings.checkpointing:
        checkpoint_activations(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in run.trained)
    if lora:
        model = with_adapters(model, run.trained, run.settings)
    tokens = run.settings.batch * run.ids_NT.shape[1]
    trainer = (ShardedTrainer if run.settings.shard else DistillTrainer)(
        model,
        Windows(run.ids_NT, run.order()),
        teacher,
        [depth.child for depth in run.depths],
        run.settings,
        arguments,
        on_step=lambda done, total: progress("distillation", done, total),
        callbacks=[] if current().rank else watchers(run.tracking, run.key(), step, tokens),
    )
    progress("distillation", step, run.steps)
    trainer.train(resume_from_checkpoint=str(saved.folder) if saved else None)
    forget_deepspeed()


def _load(run: Run, folder: Path) -> Any:
    """Load the child, or its state in a checkpoint."""
    if not run.settings.shard:
        return load_causal(folder, run.master)
    return load_sharded(folder, run.master, run.place, bf16=run.settings.bf16)


def _record(run: Run, saved: Saved) -> dict[str, Any]:
    """Return the record of the training, as stored in the child."""
    history = json.loads((saved.folder / "trainer_state.json").read_bytes())["log_history"]
    context = run.ids_NT.shape[1]
    before = read_record(run.child)
    learnt = {*run.trained, *(before or {}).get("trained", ())}
    return {
        "version": 1,
        "parent": {"name": run.parent.name, "fingerprint": run.parent.fingerprint},
        "child": (read_manifest(run.child) or {}).get("build"),
        "texts": list(dict.fromkeys(text.label for text in run.texts)),
        "context": context,
        "tokens": run.steps * run.settings.batch * context,
        "steps": run.steps,
        "settings": run.settings.method(),
        "teacher": str(run.teacher_dtype).removeprefix("torch."),
        "cache": run.cache and {"k": run.cache.k, **_left_out(run.cache)},
        "trained": [name for name in run.checkpoint.tensors if name in learnt],
        "history": [{k: row[k] for k in ("step", "loss", *PARTS)} for row in history if "loss" in row],
        "before": before and {k: v for k, v in before.items() if k not in ("trained", "history")},
    }


def _left_out(cache: CacheSettings) -> dict[str, Any]:
    about = TeacherCache(cache.folder).about
    return {key: about[key] for key in ("bytes_per_token", "tail_mass", "left_out_nats")}


def checkpoint_activations(model: Any) -> None:
    """Enable activation checkpointing inside blocks; newer transformers use another name for it."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
