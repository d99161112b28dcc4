"""Trainings in sequence: each starts from the float32 weights that the one before it left, and resumes by itself.

After every stage, its gain is measured on windows that took no part. The weights of a finished stage are kept until the
next one is finished; then only its record is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ffn_fusion.checkpoint.staging import bytes_in, check_space
from ffn_fusion.distillation.checkpoints import finish, finished, keep_record, keep_weights, newest
from ffn_fusion.distillation.distill import distill_child, weights_of
from ffn_fusion.distillation.estimate import DistillEstimate, estimate_training
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import Weights
from ffn_fusion.errors import FfnFusionError, UsageError
from ffn_fusion.processes import Progress

Gains = list[dict[str, Any]]
Measure = Callable[[Training, Weights, Gains | None, Progress], Gains]
"""(training, its weights, the gains of the one before it, progress) -> gains on windows that took no part."""

_OF_A_STAGE = ("texts", "context", "tokens", "steps", "settings", "teacher", "cache", "history", "gains")


@dataclass(frozen=True)
class Staged:
    """A distillation in stages. ``work`` holds a folder for each stage if there are several."""

    trainings: tuple[Training, ...]
    work: Path

    @classmethod
    def of(cls, trainings: Sequence[Training], work: Path) -> Staged:
        """Let each training start from the weights that the one before it leaves, in a folder of its own."""
        if len(trainings) == 1:
            return cls((replace(trainings[0], work=work),), work)
        found: list[Training] = []
        for number, training in enumerate(trainings, 1):
            stage, cache = f"stage-{number}", training.cache
            if cache:  # windows differ, so each has a cache of its own
                cache = replace(cache, folder=cache.folder / stage)
            with of_stage(number, len(trainings)):
                start = found[-1].leaves if found else None
            found.append(replace(training, work=work / stage, cache=cache, start=start))
        return cls(tuple(found), work)

    def check(self, beside: int = 0) -> None:
        """Check every stage; raises what :func:`distill_child` raises before it begins.

        Args:
            beside: bytes that the disk needs besides the checkpoints of a stage.
        """
        for number, training in enumerate(self.trainings, 1):
            with of_stage(number, len(self.trainings)):
                training.check()
                if training.settings.lora and number < len(self.trainings):
                    raise UsageError("adapters are merged in the end", "train with LoRA in the last stage alone")
        check_space(self.work, max(0, self.disk_bytes + beside - bytes_in(self.work)))

    @property
    def disk_bytes(self) -> int:
        """The bytes on disk that the largest stage needs."""
        return max(training.disk_bytes for training in self.trainings)

    def plans(self, *, timed: bool = True) -> list[DistillEstimate]:
        """Estimate each stage."""
        return [estimate_training(training, timed=timed) for training in self.trainings]

    @property
    def done(self) -> int:
        """The number of finished stages, from whose weights the next one can start."""
        for number in range(len(self.trainings), 0, -1):
            training = self.trainings[number - 1]
            saved = newest(training.work)  # of an earlier step if it is being trained again
            if saved and saved.step == training.steps and finished(training.work, training.key()) is not None:
                return number
        return 0

    def carry_out(self, measure: Measure, progress: Progress) -> tuple[Weights, dict[str, Any]]:
        """Train stage by stage, from where an earlier call stopped; return the float32 weights and the record."""
        self._remove_others()
        for number in range(self.done, len(self.trainings)):
            training, tell = self.trainings[number], _of_stage(progress, number, len(self.trainings))
            with of_stage(number + 1, len(self.trainings)):
                trained = distill_child(training, progress=tell)
                gains = measure(training, trained.weights, self._gains(number - 1), tell)
            finish(training.work, training.key(), {**trained.record, "gains": gains})
            self._tidy(number)
        self._tidy(len(self.trainings) - 1)
        records = [finished(training.work, training.key()) for training in self.trainings]
        last = newest(self.trainings[-1].work)
        assert last is not None
        return weights_of(self.trainings[-1], last), joined([record for record in records if record is not None])

    def _gains(self, number: int) -> Gains | None:
        if number < 0:
            return None
        training = self.trainings[number]
        found: Gains = (finished(training.work, training.key()) or {})["gains"]
        return found

    def _remove_others(self) -> None:
        """Remove what a distillation with other stages left here."""
        if len(self.trainings) > 1 and self.work.is_dir():
            for path in set(self.work.iterdir()) - {training.work for training in self.trainings}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _tidy(self, number: int) -> None:
        if len(self.trainings) > 1:
            keep_weights(self.trainings[number].work)
        for training in self.trainings[:number]:
            keep_record(training.work)


@contextmanager
def of_stage(number: int, of: int) -> Iterator[None]:
    """Name the stage in the error of a person's mistake, if there are several stages."""
    try:
        yield
    except FfnFusionError as error:
        if of == 1:
            raise
        raise type(error)(f"stage {number}: {error.message}", error.hint) from error


def _of_stage(progress: Progress, number: int, of: int) -> Progress:
    return progress if of == 1 else lambda what, done, total: progress(f"{what}, stage {number + 1}", done, total)


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record of several stages: sums, each stage, and the gain of all; for one stage, its own record."""
    first, last = records[0], records[-1]
    if len(records) == 1:
        return dict(first)
    learnt = {name for record in records for name in record["trained"]}
    names = max((record["trained"] for record in records), key=len)
    return {
        **{key: first[key] for key in ("version", "parent", "child")},
        "tokens": sum(record["tokens"] for record in records),
        "steps": sum(record["steps"] for record in records),
        "trained": [*names, *sorted(learnt - set(names))],
        "stages": [{key: record[key] for key in _OF_A_STAGE} for record in records],
        "gains": _whole(first["gains"], last["gains"]),
        "before": first["before"],
    }


def _whole(first: Gains, last: Gains) -> Gains:
    """Return figures from before the first stage to after the last one; none if these are of different texts."""
    if [(row["text"], row["tokens"]) for row in first] != [(row["text"], row["tokens"]) for row in last]:
        return []
    return [
        {**row, **{name: {**row[name], "before": begun[name]["before"]} for name in ("kl", "perplexity")}}
        for begun, row in zip(first, last, strict=True)
    ]
