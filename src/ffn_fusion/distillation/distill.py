"""Distil a child: check child, parent and text, train, and leave a checkpoint to write the child from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.staging import read_manifest
from ffn_fusion.distillation.checkpoints import Saved, newest, prepare
from ffn_fusion.distillation.checks import read_record
from ffn_fusion.distillation.lora import Merged, with_adapters
from ffn_fusion.distillation.settings import PARTS
from ffn_fusion.distillation.sharding import forget_deepspeed, load_sharded, take_over
from ffn_fusion.distillation.teacher import NoTeacher, OnlineTeacher, Teacher
from ffn_fusion.distillation.teacher_cache import CachedTeacher, CacheSettings, TeacherCache
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import Weights
from ffn_fusion.distillation.write_cache import Writing
from ffn_fusion.modeling.load import load_model
from ffn_fusion.processes import Progress, current, silent, together


@dataclass(frozen=True)
class Distilled:
    """The result of a training: float32 weights, read from its last checkpoint, and the record."""

    weights: Weights
    record: dict[str, Any]


@together
def distill_child(training: Training, *, progress: Progress = silent) -> Distilled:
    """Train a child's weights to match its parent's predictions, with both in memory or the parent's predictions on
    disk.

    An interrupted call continues from its last complete checkpoint, on a CPU with the same bits.

    Args:
        progress: counts windows of the cache, then optimiser steps.

    Raises:
        CheckpointError: the child was made from another parent, or the vocabularies differ.
        BlueprintError: the child has no blueprint.
        DataError: too little text.
        UsageError: inconsistent settings.
        TrainingError: a loss is not finite.
        OutputError: the disk is full.
        MissingExtraError: accelerate, peft (for LoRA) or the tracking tool is missing.
    """
    training.check()
    here = current()
    here.gather([None])  # no process has found a mistake
    if not here.rank:
        prepare(training.work, training.key())
    here.gather([None])  # the folder exists now, and holds nothing else
    saved = newest(training.work)
    if saved is None or saved.step < training.steps:
        _train(training, saved, _written(training, progress), progress)
    here.gather([None])
    saved = newest(training.work)
    assert saved is not None
    return Distilled(weights_of(training, saved), _record(training, saved))


def weights_of(training: Training, saved: Saved) -> Weights:
    """Return the weights of a checkpoint in float32."""
    if training.settings.lora:
        return Merged(open_folder(training.begins), saved.folder, training.settings, training.master)
    return open_folder(saved.folder)


def _written(training: Training, progress: Progress) -> TeacherCache | None:
    """Return the complete cache, writing it if necessary."""
    if training.cache is None:
        return None
    writing = Writing(
        training.parent, training.ids_NT, training.cache, training.teacher_dtype, training.device, training.memory
    )
    return writing.written(progress)


def _teacher(training: Training, cache: TeacherCache | None) -> Teacher:
    if cache is not None:
        return CachedTeacher(cache, training.place)
    if not training.teacher_beside:
        return NoTeacher()
    blocks = [depth.parent for depth in training.depths]
    return OnlineTeacher(
        training.parent,
        blocks,
        training.teacher_dtype,
        training.place,
        shard=training.shards_teacher,
    )


def _train(training: Training, saved: Saved | None, cache: TeacherCache | None, progress: Progress) -> None:
    from ffn_fusion.distillation.sharded_trainer import ShardedTrainer
    from ffn_fusion.distillation.trainer import DistillTrainer, Windows, training_arguments
    from ffn_fusion.distillation.watching import watchers

    if training.settings.shard:
        take_over()
    lora, step = training.settings.lora, saved.step if saved else 0
    torch.manual_seed(training.seed)
    forget_deepspeed()
    teacher = _teacher(training, cache)
    arguments = training_arguments(
        training.settings, training.seed, training.work, training.device, training.steps, training.accumulation
    )
    # After the arguments: if DeepSpeed shards, transformers knows by now, and loads the child in parts.
    model = _load(training, saved.folder if saved and not lora else training.begins)
    model.config.use_cache = False
    if training.settings.checkpointing:
        checkpoint_activations(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in training.trained)
    if lora:
        model = with_adapters(model, training.trained, training.settings)
    tokens = training.settings.batch * training.ids_NT.shape[1]
    trainer = (ShardedTrainer if training.settings.shard else DistillTrainer)(
        model,
        Windows(training.ids_NT, training.order()),
        teacher,
        [depth.child for depth in training.depths],
        training.settings,
        arguments,
        on_step=lambda done, total: progress("distillation", done, total),
        callbacks=[] if current().rank else watchers(training.tracking, training.key(), step, tokens),
    )
    progress("distillation", step, training.steps)
    trainer.train(resume_from_checkpoint=str(saved.folder) if saved else None)
    forget_deepspeed()


def _load(training: Training, folder: Path) -> Any:
    """Load the child, or its state in a checkpoint."""
    if not training.settings.shard:
        return load_model(folder, training.master)
    return load_sharded(folder, training.master, training.place, bf16=training.settings.bf16)


def _record(training: Training, saved: Saved) -> dict[str, Any]:
    """Return the record of the training, as stored in the child."""
    history = json.loads((saved.folder / "trainer_state.json").read_bytes())["log_history"]
    context = training.ids_NT.shape[1]
    before = read_record(training.child)
    learnt = {*training.trained, *(before or {}).get("trained", ())}
    return {
        "version": 1,
        "parent": {"name": training.parent.name, "fingerprint": training.parent.fingerprint},
        "child": (read_manifest(training.child) or {}).get("build"),
        "texts": list(dict.fromkeys(text.label for text in training.texts)),
        "context": context,
        "tokens": training.steps * training.settings.batch * context,
        "steps": training.steps,
        "settings": training.settings.method(),
        "teacher": str(training.teacher_dtype).removeprefix("torch."),
        "cache": training.cache and {"k": training.cache.k, **_left_out(training.cache)},
        "trained": [name for name in training.checkpoint.tensors if name in learnt],
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
