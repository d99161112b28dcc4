"""Distil a child: check that child, parent and text fit, train, and leave a checkpoint that a child is written from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import check_space, read_manifest
from ffn_fusion.data import TokenWindows, WindowRows
from ffn_fusion.distillation.checkpoints import Saved, folder_of, newest, prepare
from ffn_fusion.distillation.checks import check_cache, check_extras, check_pair, check_settings, read_record
from ffn_fusion.distillation.depths import Depth, matched_depths
from ffn_fusion.distillation.lora import Merged, with_adapters
from ffn_fusion.distillation.settings import PARTS, DistillSettings
from ffn_fusion.distillation.sharding import forget_deepspeed, launched_deepspeed, load_sharded, take_over
from ffn_fusion.distillation.teacher import NoTeacher, OnlineTeacher, Teacher, load_causal
from ffn_fusion.distillation.teacher_cache import CachedTeacher, CacheSettings, TeacherCache
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.distillation.trained import trained_numbers, trained_tensors
from ffn_fusion.distillation.write import Weights
from ffn_fusion.distillation.write_cache import Writing
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.surgery.build import BLUEPRINT, files_state


@dataclass(frozen=True)
class Distilled:
    """What a training left: float32 weights, read from its last checkpoint, and the record."""

    weights: Weights
    record: dict[str, Any]


@together
def distill_child(
    child: Path,
    parent: Checkpoint,
    texts: Sequence[TokenWindows],
    work: Path,
    *,
    settings: DistillSettings | None = None,
    teacher_dtype: torch.dtype = torch.float32,
    cache: CacheSettings | None = None,
    device: str = "cpu",
    memory: int | None = None,
    tracking: Tracking | None = None,
    progress: Progress = silent,
) -> Distilled:
    """Train a child's weights until it says what its parent says, with both in memory, or the parent on disk.

    Args:
        child: a folder that ``build`` wrote. texts: windows to learn from, all of one length.
        work: where checkpoints go. A call that was killed there goes on from the last whole one, on a CPU to the same
            bits; anything else that the folder holds is removed. ``Distilled`` reads from it.
        cache: learn from what is kept there of the parent's distributions; written first where it isn't.
        device: cpu or cuda.
        memory: bytes that a process may use while it writes the cache (default: half of what's free).
        tracking: where to log how it goes.
        progress: counts windows of the cache, then steps of the optimiser.

    Raises:
        CheckpointError: the parent isn't the child's, or has another vocabulary. BlueprintError: the child has none.
        DataError: too little text. UsageError: settings that don't fit. TrainingError: a loss that isn't finite.
        OutputError: the disk is full. MissingExtraError: no accelerate, no peft for LoRA, nothing to track with.
    """
    run = Run(child, parent, texts, work, settings or DistillSettings(), teacher_dtype, cache, device, memory, tracking)
    run.check()
    return run.carry_out(progress)


@together
def train(run: Run, *, progress: Progress = silent) -> Distilled:
    """The same for a training that is described already. Raises: see :func:`distill_child`."""
    run.check()
    return run.carry_out(progress)


@dataclass(frozen=True)
class Start:
    """What a training begins with in place of the child's own weights: those in float32 that an earlier one leaves.

    ``key``: of the earlier training.
    """

    folder: Path
    key: str


@dataclass(frozen=True)
class Run:
    """One training that is to be made; ``start`` where it isn't the first."""

    child: Path
    parent: Checkpoint
    texts: Sequence[TokenWindows]
    work: Path
    settings: DistillSettings
    teacher_dtype: torch.dtype = torch.float32
    cache: CacheSettings | None = None
    device: str = "cpu"
    memory: int | None = None
    tracking: Tracking | None = None
    start: Start | None = None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_folder(self.child)

    @cached_property
    def blueprint(self) -> Blueprint:
        return Blueprint.load(self.child / BLUEPRINT)

    @cached_property
    def depths(self) -> tuple[Depth, ...]:
        """Where states are compared; nowhere if they don't count."""
        return matched_depths(self.blueprint) if self.settings.objective.cosine else ()

    @cached_property
    def ids_NT(self) -> WindowRows:  # noqa: N802
        return WindowRows(self.texts)

    @cached_property
    def steps(self) -> int:
        """Of the optimiser; windows that don't fill a batch at the end are left out."""
        return len(self.ids_NT) * self.settings.epochs // self.settings.batch

    @property
    def accumulation(self) -> int:
        return self.settings.batch // (self.settings.micro * current().world)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the tensors that come out changed."""
        return trained_tensors(self.checkpoint, self.blueprint, self.settings)

    @cached_property
    def parameters(self) -> int:
        """Numbers that learn."""
        return trained_numbers(self.checkpoint, self.trained, self.settings)

    @property
    def disk_bytes(self) -> int:
        """Of three checkpoints at a time: weights (of adapters alone), and two moments of what learns, in float32; and
        of the start.
        """
        whole = self.checkpoint.parameters
        weights = self.parameters if self.settings.lora else whole
        return 4 * (3 * (weights + 2 * self.parameters) + (whole if self.start else 0))

    @property
    def begins(self) -> Path:
        """A folder with the weights that it begins with."""
        return self.start.folder if self.start else self.child

    @property
    def leaves(self) -> Start:
        """What the next training begins with, once this one is done."""
        return Start(folder_of(self.work, self.steps), self.key())

    def check_models(self) -> None:
        """What can be said without the text. Raises: see :func:`distill_child`."""
        check_pair(self.child, self.checkpoint, self.blueprint, self.parent)
        self.check_early()
        if not self.trained:
            raise UsageError("surgery touched no block of this child", "train all of it (--trained all)")
        there = sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())  # of an interrupted call
        check_space(self.work, max(0, self.disk_bytes - there))

    def check_early(self) -> None:
        """What can be known without child and text. Raises: see :func:`distill_child`."""
        check_settings(self.settings, current().world, self.device)
        check_cache(self.cache, self.settings.objective.cosine, self.settings.objective.temperature)

    def check(self) -> None:
        """Raises: see :func:`distill_child`."""
        self.check_models()
        self.check_texts()

    def check_texts(self) -> None:
        """Raises: DataError: too little text, or windows of several lengths."""
        if len({text.ids_NT.shape[1] for text in self.texts}) > 1:
            raise DataError("the texts come in windows of different lengths", "cut all of them with one context")
        if not self.steps:
            raise DataError(
                f"{len(self.ids_NT)} windows of text are less than one batch of {self.settings.batch}",
                "give more text (--tokens), shorter windows (--context) or a smaller batch (--batch)",
            )

    @property
    def teacher_beside(self) -> bool:
        """Whether the parent itself runs beside the child."""
        objective = self.settings.objective
        return self.cache is None and bool(objective.kl or objective.cosine)

    def order(self) -> list[int]:
        """Windows one after another: all of them, shuffled anew for every epoch, as far as batches are full."""
        rng, found = random.Random(self.settings.seed), list[int]()
        for _ in range(self.settings.epochs):
            found += rng.sample(range(len(self.ids_NT)), len(self.ids_NT))
        return found[: self.steps * self.settings.batch]

    def carry_out(self, progress: Progress) -> Distilled:
        here = current()
        check_extras(self.settings, self.tracking)
        if not here.rank:
            prepare(self.work, self.key())
        here.gather([None])  # the folder is there, and what isn't ours is gone
        saved = newest(self.work)
        if saved is None or saved.step < self.steps:
            self._train(saved, self._written(progress), progress)
        here.gather([None])
        saved = newest(self.work)
        assert saved is not None
        return Distilled(self.weights(saved), self.record(saved))

    def weights(self, saved: Saved) -> Weights:
        """Float32, of a checkpoint."""
        if self.settings.lora:
            return Merged(open_folder(self.begins), saved.folder, self.settings, self._master)
        return open_folder(saved.folder)

    def _written(self, progress: Progress) -> TeacherCache | None:
        """The cache, whole."""
        if self.cache is None:
            return None
        writing = Writing(self.parent, self.ids_NT, self.cache, self.teacher_dtype, self.device, self.memory)
        return writing.written(progress)

    def _teacher(self, cache: TeacherCache | None) -> Teacher:
        if cache is not None:
            return CachedTeacher(cache, self._device)
        if not self.teacher_beside:
            return NoTeacher()
        blocks = [depth.parent for depth in self.depths]
        return OnlineTeacher(self.parent.folder, blocks, self.teacher_dtype, self._device, shard=self._shards_teacher)

    @property
    def _shards_teacher(self) -> bool:
        """Whoever shards the child, the parent that runs beside it is sharded by us."""
        return current().world > 1 and (self.settings.shard or launched_deepspeed())

    def _train(self, saved: Saved | None, cache: TeacherCache | None, progress: Progress) -> None:
        from ffn_fusion.distillation.sharded_trainer import ShardedTrainer
        from ffn_fusion.distillation.trainer import DistillTrainer, Windows, training_arguments
        from ffn_fusion.distillation.watching import watchers

        if self.settings.shard:
            take_over()
        lora, step = self.settings.lora, saved.step if saved else 0
        torch.manual_seed(self.settings.seed)
        forget_deepspeed()
        teacher = self._teacher(cache)
        arguments = training_arguments(self.settings, self.work, self.device, self.steps, self.accumulation)
        # Behind the arguments: where DeepSpeed shards, transformers knows by now, and loads the child in parts.
        model = self._load(saved.folder if saved and not lora else self.begins)
        model.config.use_cache = False
        if self.settings.checkpointing:
            checkpoint_activations(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        if lora:
            model = with_adapters(model, self.trained, self.settings)
        tokens = self.settings.batch * self.ids_NT.shape[1]
        trainer = (ShardedTrainer if self.settings.shard else DistillTrainer)(
            model,
            Windows(self.ids_NT, self.order()),
            teacher,
            [depth.child for depth in self.depths],
            self.settings,
            arguments,
            on_step=lambda done, total: progress("distillation", done, total),
            callbacks=[] if current().rank else watchers(self.tracking, self.key(), step, tokens),
        )
        progress("distillation", step, self.steps)
        trainer.train(resume_from_checkpoint=str(saved.folder) if saved else None)
        forget_deepspeed()

    def _load(self, folder: Path) -> Any:
        """The child, or what a checkpoint has of it."""
        if not self.settings.shard:
            return load_causal(folder, self._master)
        return load_sharded(folder, self._master, self._device, bf16=self.settings.bf16)

    @property
    def _master(self) -> torch.dtype:
        """What weights are kept in while they learn."""
        return torch.float64 if self.checkpoint.dtype == "F64" else torch.float32

    @property
    def _device(self) -> str:
        return current().device(self.device)

    def record(self, saved: Saved) -> dict[str, Any]:
        """What was done, as it lies in the child."""
        history = json.loads((saved.folder / "trainer_state.json").read_bytes())["log_history"]
        context = self.ids_NT.shape[1]
        before = read_record(self.child)
        learnt = {*self.trained, *(before or {}).get("trained", ())}
        return {
            "version": 1,
            "parent": {"name": self.parent.name, "fingerprint": self.parent.fingerprint},
            "child": (read_manifest(self.child) or {}).get("build"),
            "texts": list(dict.fromkeys(text.label for text in self.texts)),
            "context": context,
            "tokens": self.steps * self.settings.batch * context,
            "steps": self.steps,
            "settings": asdict(self.settings),
            "teacher": str(self.teacher_dtype).removeprefix("torch."),
            "cache": self.cache and {"k": self.cache.k, **_left_out(self.cache)},
            "trained": [name for name in self.checkpoint.tensors if name in learnt],
            "history": [{k: row[k] for k in ("step", "loss", *PARTS)} for row in history if "loss" in row],
            "before": before and {k: v for k, v in before.items() if k not in ("trained", "history")},
        }

    def key(self) -> str:
        """A hash over all that the result depends on."""
        words = [
            files_state(self.checkpoint),
            self.checkpoint.fingerprint,
            files_state(self.parent),
            self.parent.fingerprint,
            asdict(self.settings),
            str(self.teacher_dtype),
            self.cache and [self.cache.k, self.cache.temperature],
            self.device,
            torch.__version__,
            version("transformers"),
            version("ffn-fusion"),
            current().world,
            launched_deepspeed(),
            list(self.ids_NT.shape),
            *([self.start.key] if self.start else []),
        ]
        return hashlib.sha256(json.dumps(words).encode() + self.ids_NT.content).hexdigest()


def _left_out(cache: CacheSettings) -> dict[str, Any]:
    about = TeacherCache(cache.folder).about
    return {key: about[key] for key in ("bytes_per_token", "tail_mass", "left_out_nats")}


def checkpoint_activations(model: Any) -> None:
    """Keep no activations inside blocks; newer transformers call it by another name."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
