"""Trainings that one process and several make alike; on several processes: all of them, sharded, one by one."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.distillation import distill, sharded_trainer
from ffn_fusion.distillation.distill import Distilled, distill_child
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.sharded_trainer import ShardedTrainer
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.training import Training
from ffn_fusion.errors import OutputError
from ffn_fusion.processes import Progress, lead, silent

STEPS = 20
"""Each of four windows."""
BASE = DistillSettings(batch=4, micro=2, learning_rate=1e-3, warmup=0.1, clip=0.5, save_every=20)
SHORT = BASE.replaced(save_every=2, shard=True)
"""Six steps, with a checkpoint behind every other."""
CASES = {
    "untied": BASE.replaced(micro=1),
    "tied": BASE.replaced(objective=Objective(kl=0.7, cosine=0.5, lm=0.3)),
    "touched": BASE.replaced(trained="touched", checkpointing=True),
    "cached": BASE.replaced(objective=Objective(kl=1, cosine=0, lm=0.2)),
    "bf16": BASE.replaced(bf16=True, checkpointing=True),
}


def pair_of(case: str) -> str:
    return "tied" if case == "tied" else "untied"


def train(
    pair: Path, work: Path, settings: DistillSettings, progress: Progress = silent, *, cached: bool = False
) -> Distilled:
    """``pair``: a folder with parent, child and ids.pt."""
    ids = torch.load(pair / "ids.pt")[: 24 if settings.save_every == SHORT.save_every else None]
    cache = CacheSettings(work.with_name(f"{work.name}-cache"), k=8) if cached else None
    texts, parent = [TokenWindows("t", ids.numpy())], open_folder(pair / "parent")
    return distill_child(
        Training(pair / "child", parent, texts, work, settings=settings, cache=cache), progress=progress
    )


def compare(pairs: Path, out: Path) -> None:
    """All cases, one after another, and the short one."""
    for name, settings in CASES.items():
        sharded = settings.replaced(shard=True)
        done = train(pairs / pair_of(name), out / name, sharded, cached=name == "cached")
        (out / f"{name}.json").write_text(json.dumps(done.record["history"]))
    train(pairs / "untied", out / "short", SHORT)


def resume(pairs: Path, out: Path) -> None:
    """The short one to its end, from wherever ``out`` is."""
    train(pairs / "untied", out, SHORT)


def _stopped(what: str, done: int, total: int) -> None:
    if done == 3:
        raise KeyboardInterrupt


def slowly(pairs: Path, out: Path) -> None:
    """The short one, for a signal to come before its end."""
    train(pairs / "untied", out, SHORT, lambda *_: time.sleep(0.3))


def stop(pairs: Path, out: Path) -> None:
    """Stopped between two checkpoints, and going on; a checkpoint that can't be written, and going on."""
    with suppress(KeyboardInterrupt):
        train(pairs / "untied", out / "stopped", SHORT, _stopped)
    train(pairs / "untied", out / "stopped", SHORT)

    def no_room(what: str, done: int, total: int) -> None:
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))  # writes fail in the midst of the weights

    for name, progress in (("first", no_room), ("second", silent)):
        try:
            train(pairs / "untied", out / name, SHORT, progress)
        except OutputError as error:
            (out / f"{name}.txt").write_text(f"{error.message}; {error.hint}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        train(pairs / "untied", out / name, SHORT)


class SecondHasNoRoom(ShardedTrainer):
    """Once, behind step 4, in the folder of that name."""

    tried = False

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if Path(output_dir).parent.name == "second" and output_dir.endswith("-4") and not SecondHasNoRoom.tried:
            SecondHasNoRoom.tried = True
            raise OSError(28, "No space left on device")
        super()._save_optimizer_and_scheduler(output_dir)


class LooksForLong(Training):
    """At the work folder, in which nobody may change anything meanwhile."""

    def check_models(self) -> None:
        before = sorted(self.work.rglob("*"))
        time.sleep(0.5)
        super().check_models()
        assert sorted(self.work.rglob("*")) == before, f"{self.work} has changed"


def diverge(pairs: Path, out: Path) -> None:
    """A gradient that isn't finite at step 3: the rate is zero at the first, and far too large at the second."""
    train(pairs / "untied", out, SHORT.replaced(learning_rate=1e30, clip=0.0, warmup=0.5))


def deepspeed(pairs: Path, out: Path) -> None:
    """What DeepSpeed shards: losses of two cases; and six steps with and without a stop."""
    for name in ("untied", "tied"):
        done = train(pairs / name, out / name, CASES[name])
        (out / f"{name}.json").write_text(json.dumps(done.record["history"]))
    short = SHORT.replaced(shard=False)
    train(pairs / "untied", out / "whole", short)
    with suppress(KeyboardInterrupt):
        train(pairs / "untied", out / "stopped", short, _stopped)
    train(pairs / "untied", out / "stopped", short)


WORK = {
    "compare": compare,
    "resume": resume,
    "slowly": slowly,
    "stop": stop,
    "diverge": diverge,
    "deepspeed": deepspeed,
}


def carry_out(what: str, pairs: Path, out: Path) -> NoReturn:
    """One of ``WORK``, on the processes that torchrun's variables name."""
    if os.environ["RANK"] == "1":
        sharded_trainer.ShardedTrainer = SecondHasNoRoom  # type: ignore[misc]
        distill.Training = LooksForLong  # type: ignore[misc]
    lead(lambda: WORK[what](pairs, out) or 0)  # type: ignore[func-returns-value]


if __name__ == "__main__":
    torch.set_num_threads(1)
    carry_out(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
