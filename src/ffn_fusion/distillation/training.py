"""One training: its inputs, the checks before it begins, and the key of everything that its result depends on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import bytes_in, check_space
from ffn_fusion.data.window_rows import TokenWindows, WindowRows
from ffn_fusion.distillation.checkpoints import folder_of
from ffn_fusion.distillation.checks import check_cache, check_extras, check_pair, check_settings
from ffn_fusion.distillation.depths import Depth, matched_depths
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.sharding import launched_deepspeed
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.distillation.trained import trained_numbers, trained_tensors
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.processes import current
from ffn_fusion.surgery.build import BLUEPRINT


@dataclass(frozen=True)
class Start:
    """The float32 weights that an earlier training leaves, from which this one starts instead of the child's own.

    Args:
        key: of the earlier training.
    """

    folder: Path
    key: str


Description = tuple[Checkpoint, Blueprint]
"""A child that isn't built yet: the sizes of its tensors, and its blueprint."""


@dataclass(frozen=True)
class Training:
    """One training of a child against its parent.

    Args:
        child: a folder that ``build`` wrote.
        texts: training windows, all of one length.
        work: the folder for checkpoints, from which the weights are read at the end. Anything else in it is removed.
        cache: train on the parent's distributions stored there; they are written first if necessary.
        device: cpu or cuda.
        memory: bytes that a process may use while it writes the cache; None: half of the free memory.
        tracking: where to log progress.
        start: the weights to start from, if they aren't the child's.
        description: the child, if it isn't built yet; enough to estimate the training.
        seed: of the order of the windows.
    """

    child: Path
    parent: Checkpoint
    texts: Sequence[TokenWindows]
    work: Path
    settings: DistillSettings = DistillSettings()
    teacher_dtype: torch.dtype = torch.float32
    cache: CacheSettings | None = None
    device: str = "cpu"
    memory: int | None = None
    tracking: Tracking | None = None
    start: Start | None = None
    description: Description | None = None
    seed: int = 0

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return self.description[0] if self.description else open_folder(self.child)

    @cached_property
    def blueprint(self) -> Blueprint:
        return self.description[1] if self.description else Blueprint.load(self.child / BLUEPRINT)

    @cached_property
    def depths(self) -> tuple[Depth, ...]:
        """The depths at which states are compared; none if the objective has no cosine."""
        return matched_depths(self.blueprint) if self.settings.objective.cosine else ()

    @cached_property
    def ids_NT(self) -> WindowRows:  # noqa: N802
        return WindowRows(self.texts)

    @cached_property
    def steps(self) -> int:
        """Optimiser steps; windows that don't fill a batch at the end are left out."""
        return len(self.ids_NT) * self.settings.epochs // self.settings.batch

    @property
    def accumulation(self) -> int:
        return self.settings.batch // (self.settings.micro * current().world)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the tensors that are changed."""
        return trained_tensors(self.checkpoint, self.blueprint, self.settings)

    @cached_property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return trained_numbers(self.checkpoint, self.trained, self.settings)

    @property
    def disk_bytes(self) -> int:
        """Bytes of three checkpoints: weights (or adapters), and two moments of the trained weights, in float32; and
        of the start.
        """
        whole = self.checkpoint.parameters
        weights = self.parameters if self.settings.lora else whole
        return 4 * (3 * (weights + 2 * self.parameters) + (whole if self.start else 0))

    @property
    def begins(self) -> Path:
        """The folder of the weights to start from."""
        return self.start.folder if self.start else self.child

    @property
    def leaves(self) -> Start:
        """The start of the next training, once this one is finished."""
        return Start(folder_of(self.work, self.steps), self.key())

    def check_models(self) -> None:
        """Check what doesn't need the text. Raises: see :func:`distill_child`."""
        check_pair(self.child, self.checkpoint, self.blueprint, self.parent)
        self.check_early()
        if not self.trained:
            raise UsageError("surgery touched no block of this child", "train all of it (--trained all)")
        check_space(self.work, max(0, self.disk_bytes - bytes_in(self.work)))  # of an interrupted call

    def check_early(self) -> None:
        """Check what needs neither child nor text. Raises: see :func:`distill_child`."""
        check_settings(self.settings, current().world, self.device)
        check_cache(self.cache, self.settings.objective.cosine, self.settings.objective.temperature)
        check_extras(self.settings, self.tracking)

    def check(self) -> None:
        """Check everything. Raises: see :func:`distill_child`."""
        self.check_models()
        self.check_texts()

    def check_texts(self) -> None:
        """Check the text. Raises: DataError: too little, windows of several lengths, or too long for the parent."""
        if len({text.ids_NT.shape[1] for text in self.texts}) > 1:
            raise DataError("the texts come in windows of different lengths", "cut all of them with one context")
        context, longest = self.ids_NT.shape[1], self.parent.spec.config.get("max_position_embeddings")
        if isinstance(longest, int) and context > longest:
            raise DataError(
                f"windows of {context:,} tokens, and {self.parent.name} reads {longest:,} (max_position_embeddings)",
                "choose a shorter context",
            )
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
        """Return the numbers of the windows in training order: reshuffled for every epoch, without an incomplete
        batch."""
        rng, found = random.Random(self.seed), list[int]()
        for _ in range(self.settings.epochs):
            found += rng.sample(range(len(self.ids_NT)), len(self.ids_NT))
        return found[: self.steps * self.settings.batch]

    @property
    def shards_teacher(self) -> bool:
        """Whether the parent that runs beside the child is sharded, by whatever means the child is."""
        return current().world > 1 and (self.settings.shard or launched_deepspeed())

    @property
    def master(self) -> torch.dtype:
        """The dtype of the weights during the training."""
        return torch.float64 if self.checkpoint.dtype == "F64" else torch.float32

    @property
    def place(self) -> str:
        """The device of this process."""
        return current().device(self.device)

    def key(self) -> str:
        """Return a hash of everything that the result depends on."""
        words = [
            self.checkpoint.files_state,
            self.checkpoint.fingerprint,
            self.parent.files_state,
            self.parent.fingerprint,
            self.settings.method(),
            self.seed,
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
