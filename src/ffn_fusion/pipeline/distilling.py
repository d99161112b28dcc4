"""A distillation as verbs make it: text -> training -> a child on disk, and what it gained on windows kept back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.staging import check_target
from ffn_fusion.data import TokenWindows
from ffn_fusion.data.window_file import read_origin
from ffn_fusion.distillation.distill import Distilled, Run, distill_child
from ffn_fusion.distillation.plan import DistillPlan, plan_distillation
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.write import AsStored, write_distilled
from ffn_fusion.errors import FfnFusionError
from ffn_fusion.evaluation.evaluate import PARENT, evaluate
from ffn_fusion.pipeline.recipe import Text
from ffn_fusion.pipeline.training_windows import training_windows
from ffn_fusion.processes import Progress, silent
from ffn_fusion.report.model_card import model_card, read_licence
from ffn_fusion.surgery.repairs import RECORD, is_repaired

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Distilling:
    """A verb's distillation, of a child that goes to ``output``, with the windows that are kept back.

    ``windows`` holds those of each text, in a file of its number.
    """

    run: Run
    kept_back: Sequence[TokenWindows]
    output: Path
    windows: Path

    @classmethod
    def of(
        cls,
        child: Path,
        parent: Checkpoint,
        output: Path,
        text: Text,
        settings: DistillSettings,
        teacher_dtype: torch.dtype,
        cache: CacheSettings | None,
        device: str,
        memory: int | None,
        *,
        dry_run: bool = False,
        progress: Progress = silent,
    ) -> Distilling:
        """``dry_run``: windows are counted and not written, which is enough for a plan."""
        check_target(output, child)
        check_target(output, parent.folder)
        work = output.with_name(f".{output.name}.distillation")
        how = (settings, teacher_dtype, cache, device, memory)
        Run(child, parent, (), work, *how).check_models()
        windows = output.with_name(f".{output.name}.windows")
        try:
            used, kept_back = training_windows(child, text, settings.seed, None if dry_run else windows, progress)
            run = Run(child, parent, used, work, *how)
            run.check()
        except FfnFusionError:
            if not any(windows.glob("*.json")):  # nothing in it to go on from
                shutil.rmtree(windows, ignore_errors=True)
            raise
        return cls(run, kept_back, output, windows)

    def plan(self) -> DistillPlan:
        """What it will take."""
        return plan_distillation(self.run)

    def carry_out(self, on_plan: Callable[[DistillPlan], None], progress: Progress) -> dict[str, Any]:
        """Train, measure, and write the child; the work folder goes when the child is there. Returns the record."""
        run = self.run
        on_plan(self.plan())
        done = distill_child(
            run.child,
            run.parent,
            run.texts,
            run.work,
            settings=run.settings,
            teacher_dtype=run.teacher_dtype,
            cache=run.cache,
            device=run.device,
            memory=run.memory,
            progress=progress,
        )
        record = {**done.record, "sources": self._sources(), "gains": self._gains(done, progress)}
        write_distilled(run.checkpoint, done.weights, record, self.output, model_card=self._card(record))
        shutil.rmtree(run.work, ignore_errors=True)
        shutil.rmtree(self.windows, ignore_errors=True)
        return record

    def _sources(self) -> list[dict[str, Any]]:
        """What each text was, and how much of it was taken."""
        return [
            {"text": text.label, "tokens": text.tokens, **read_origin(self.windows / str(number))}
            for number, text in enumerate(self.run.texts)
        ]

    def _gains(self, done: Distilled, progress: Progress) -> list[dict[str, Any]]:
        """KL to the parent (nats a token) and perplexity on windows that took no part, text by text."""
        if not self.kept_back:
            return []
        run = self.run
        models: dict[str, TensorSource] = {
            PARENT: run.parent,
            BEFORE: run.checkpoint,
            AFTER: AsStored(run.checkpoint, done.weights),
        }
        found = evaluate(models, self.kept_back, device=run.device, progress=progress)
        return [
            {
                "text": text.text,
                "tokens": text.tokens,
                "kl": {name: text.scores[name].kl for name in (BEFORE, AFTER)},
                "perplexity": {name: text.scores[name].perplexity for name in models},
            }
            for text in found
        ]

    def _card(self, record: dict[str, Any]) -> str:
        child = self.run.child
        return model_card(
            self.output.name,
            self.run.blueprint,
            version("ffn-fusion"),
            read_licence(self.run.parent.folder) or read_licence(child),
            repairs=_repairs(child),
            distillation=record,
        )


def _repairs(child: Path) -> dict[str, Any] | None:
    """The record of the child's repair, whose weights the child itself holds."""
    record: dict[str, Any] | None = json.loads((child / RECORD).read_bytes()) if is_repaired(child) else None
    return record
