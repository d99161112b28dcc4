"""A distillation as verbs and runs make it: text -> stages -> a child on disk, and what it gained on other windows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import check_target
from ffn_fusion.data import TokenWindows
from ffn_fusion.data.hub_text import PREFIX
from ffn_fusion.data.window_file import read_origin
from ffn_fusion.distillation.plan import DistillPlan
from ffn_fusion.distillation.run import Run
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.tracking import Tool, Tracking
from ffn_fusion.distillation.write import AsStored, Weights, write_distilled
from ffn_fusion.errors import FfnFusionError
from ffn_fusion.evaluation.evaluate import PARENT, evaluate
from ffn_fusion.pipeline.distill_stages import Gains, Stage, Staged, of_stage
from ffn_fusion.pipeline.kept_back import without
from ffn_fusion.pipeline.recipe import Text
from ffn_fusion.pipeline.training_windows import training_windows
from ffn_fusion.processes import Progress, silent
from ffn_fusion.report.model_card import model_card, read_licence
from ffn_fusion.surgery.repairs import RECORD, is_repaired

BEFORE, AFTER = "before", "after"


def measure(
    texts: Sequence[TokenWindows], run: Run, weights: Weights, earlier: Gains | None, progress: Progress
) -> Gains:
    """What a stage gained: KL to the parent (nats a token) and perplexity on windows that took no part, text by text.

    Args:
        earlier: the gains of the stage before, whose end is this one's beginning; on other texts they don't count.
    """
    if not texts:
        return []
    models: dict[str, TensorSource] = {PARENT: run.parent}
    if [(row["text"], row["tokens"]) for row in earlier or ()] != [(text.label, text.tokens) for text in texts]:
        earlier = None
        models[BEFORE] = AsStored(run.checkpoint, open_folder(run.begins))
    models[AFTER] = AsStored(run.checkpoint, weights)
    found = evaluate(models, texts, device=run.device, progress=progress)
    rows: Gains = [
        {
            "text": text.text,
            "tokens": text.tokens,
            "kl": {name: text.scores[name].kl for name in models if name != PARENT},
            "perplexity": {name: text.scores[name].perplexity for name in models},
        }
        for text in found
    ]
    for row, then in zip(rows, earlier or (), strict=earlier is not None):
        for name in ("kl", "perplexity"):
            row[name] = {BEFORE: then[name][AFTER], **row[name]}
    return rows


@dataclass(frozen=True)
class Distilling:
    """A verb's distillation, of a child that goes to ``output``, with the windows that are kept back.

    ``windows`` holds those of each text, in a file of its number.
    """

    stages: Staged
    kept_back: Sequence[TokenWindows]
    output: Path
    windows: Path

    @classmethod
    def of(
        cls,
        child: Path,
        parent: Checkpoint,
        output: Path,
        texts: Sequence[Text],
        settings: DistillSettings,
        teacher_dtype: torch.dtype,
        cache: CacheSettings | None,
        device: str,
        memory: int | None,
        track: Tool | None = None,
        *,
        dry_run: bool = False,
        progress: Progress = silent,
    ) -> Distilling:
        """``texts``: of each stage, which all have the same settings. ``dry_run``: windows are counted and not written,
        which is enough for a plan.
        """
        check_target(output, child)
        check_target(output, parent.folder)
        work, windows = (output.with_name(f".{output.name}.{name}") for name in ("distillation", "windows"))
        tracking = Tracking(track, output.with_name(f"{output.name}.logs")) if track else None
        first = partial(Run, child, parent, tracking=tracking)
        first((), work, settings, teacher_dtype, cache, device, memory).check_models()
        try:
            cut = _Cut(child, settings.seed, None if dry_run else windows, progress)
            used, kept_back = cut.all(texts)
            stages = [Stage(found, settings, teacher_dtype, cache) for found in used]
            staged = Staged.of(first, stages, work, device, memory)
            staged.check()
        except FfnFusionError:
            if not any(windows.rglob("*.json")):  # nothing in it to go on from
                shutil.rmtree(windows, ignore_errors=True)
            raise
        return cls(staged, kept_back, output, windows)

    def plans(self) -> list[DistillPlan]:
        """What each stage will take."""
        return self.stages.plans()

    def carry_out(self, on_plan: Callable[[list[DistillPlan]], None], progress: Progress) -> dict[str, Any]:
        """Train, measure, and write the child; the work folder goes when the child is there. Returns the record."""
        on_plan(self.plans())
        run = self.stages.runs[0]
        weights, record = self.stages.carry_out(partial(measure, self.kept_back), progress)
        record = {**record, "sources": sources(self.stages)}
        card = distilled_card(self.output.name, run, record)
        write_distilled(run.checkpoint, weights, record, self.output, model_card=card)
        for folder in (self.stages.work, self.windows):
            shutil.rmtree(folder, ignore_errors=True)
        return record


@dataclass(frozen=True)
class _Cut:
    """Windows of stages, in ``files``, a folder for each of several; None: only as many as there would be."""

    child: Path
    seed: int
    files: Path | None
    progress: Progress

    def all(self, texts: Sequence[Text]) -> tuple[list[list[TokenWindows]], list[TokenWindows]]:
        """Those of each stage, and those that no stage sees, which are kept back at the first."""
        used, kept_back = list[list[TokenWindows]](), list[TokenWindows]()
        for number, text in enumerate(texts, 1):
            with of_stage(number, len(texts)):
                files = self.files / f"stage-{number}" if self.files and len(texts) > 1 else self.files
                found, others = training_windows(self.child, text, self.seed, files, self.progress)
                if number == 1:
                    kept_back = others
                elif files is not None:
                    found = [part for parts in without(found, kept_back) for part in parts]
                used.append(found)
        return used, kept_back


def sources(stages: Staged) -> list[dict[str, Any]]:
    """What each text was, and how much of it all stages together took; of files here no more than the label."""
    found: dict[str, dict[str, Any]] = {}
    for text in (text for run in stages.runs for text in run.texts):
        assert text.in_file is not None
        origin = read_origin(text.in_file.path)
        row = {"text": text.label, "tokens": 0, **(origin if origin["source"].startswith(PREFIX) else {})}
        found.setdefault(origin["source"], row)["tokens"] += text.tokens
    return list(found.values())


def distilled_card(name: str, run: Run, record: dict[str, Any]) -> str:
    """The model card of a child that was just distilled."""
    return model_card(
        name,
        run.blueprint,
        version("ffn-fusion"),
        read_licence(run.parent.folder) or read_licence(run.child),
        repairs=read_repairs(run.child),
        distillation=record,
    )


def read_repairs(child: Path) -> dict[str, Any] | None:
    """The record of the child's repair, whose weights the child itself holds."""
    record: dict[str, Any] | None = json.loads((child / RECORD).read_bytes()) if is_repaired(child) else None
    return record
