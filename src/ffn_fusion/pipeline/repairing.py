"""A repair as runs and verbs make it: text -> repairs, and what they gained on windows that took no part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.blueprint import Blueprint, unfused
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.staging import check_space
from ffn_fusion.compute import compute_dtype
from ffn_fusion.data import TokenWindows
from ffn_fusion.evaluation.evaluate import PARENT, evaluate
from ffn_fusion.pipeline.recipe import Recipe, RepairSection, Text
from ffn_fusion.pipeline.stages import PRUNED, UNREPAIRED, calibration_windows
from ffn_fusion.pipeline.training_windows import split_windows
from ffn_fusion.processes import Progress
from ffn_fusion.repair.plan import RepairPlan
from ffn_fusion.repair.repair import plan_repair, repair_child
from ffn_fusion.surgery.build import child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import Repairs, save_record
from ffn_fusion.units import parse_bytes

REPAIRED = "repaired"


@dataclass(frozen=True)
class Repairing:
    """One repair that is to be made, of a child with something to repair; ``folder`` is where it goes on from."""

    checkpoint: Checkpoint
    blueprint: Blueprint
    section: RepairSection
    calibration: Sequence[TokenWindows]
    folder: Path
    device: str = "cpu"
    memory: int | None = None

    def plan(self) -> RepairPlan:
        """What it will take."""
        return plan_repair(self.checkpoint, self.blueprint, self.calibration, self.folder, **self._how())

    def carry_out(self, on_plan: Callable[[RepairPlan], None], progress: Progress) -> Repairs:
        """Solve the changed blocks' output projections anew."""
        return repair_child(
            self.checkpoint,
            self.blueprint,
            self.calibration,
            self.folder,
            on_plan=on_plan,
            progress=progress,
            **self._how(),
        )

    def gains(self, repairs: Repairs, texts: Sequence[TokenWindows], progress: Progress) -> list[dict[str, Any]]:
        """KLs to the parent on other windows, text by text, in nats a token."""
        if not texts:
            return []
        models: dict[str, TensorSource] = {
            PARENT: self.checkpoint,
            PRUNED: Child(self.checkpoint, unfused(self.blueprint)),
            UNREPAIRED: Child(self.checkpoint, self.blueprint),
            REPAIRED: Child(self.checkpoint, self.blueprint, 1, repairs),
        }
        dtype = compute_dtype(self.section.dtype, self.checkpoint)
        found = evaluate(models, texts, dtype=dtype, device=self.device, progress=progress)
        names = [name for name in models if name != PARENT]
        return [
            {"text": text.text, "tokens": text.tokens, **{name: text.scores[name].kl for name in names}}
            for text in found
        ]

    def _how(self) -> dict[str, Any]:
        return {
            "settings": self.section.settings(),
            "dtype": compute_dtype(self.section.dtype, self.checkpoint),
            "device": self.device,
            "memory": self.memory,
        }


def repairing_of_run(recipe: Recipe, checkpoint: Checkpoint, blueprint: Blueprint, folder: Path) -> Repairing:
    """A run's repair, on the calibration's texts if the recipe names none for it."""
    windows = repair_windows(recipe, checkpoint.folder)
    memory = parse_bytes(recipe.memory) if recipe.memory else None
    return Repairing(checkpoint, blueprint, recipe.repair, windows, folder, recipe.device, memory)


def repair_windows(recipe: Recipe, folder: Path) -> list[TokenWindows]:
    """The tokens that a run repairs its child on."""
    section = recipe.repair
    text = Text(texts=section.texts or recipe.calibration.texts, tokens=section.tokens, context=section.context)
    return calibration_windows(folder, text, recipe.seed)


@dataclass(frozen=True)
class ChildRepairing:
    """A verb's repair, for a child that goes to ``output``, with the windows that are kept back."""

    repairing: Repairing
    kept_back: Sequence[TokenWindows]

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        blueprint: Blueprint,
        section: RepairSection,
        output: Path,
        seed: int,
        device: str,
        memory: int | None,
    ) -> ChildRepairing:
        folder = output.with_name(f".{output.name}.repairs")
        wanted = Text(texts=section.texts, tokens=section.tokens, context=section.context)
        used, kept_back = split_windows(checkpoint.folder, wanted, seed)
        return cls(Repairing(checkpoint, blueprint, section, used, folder, device, memory), kept_back)

    @contextmanager
    def child(
        self, width_multiple: int, on_plan: Callable[[RepairPlan], None], progress: Progress
    ) -> Iterator[tuple[Child, dict[str, Any]]]:
        """The repaired child, ready to be built, and the record; the folder goes when the child was built."""
        work = self.repairing
        check_space(work.folder, child_bytes(Child(work.checkpoint, work.blueprint, width_multiple)))
        repairs = work.carry_out(on_plan, progress)
        save_record(work.folder, {**repairs.record, "gains": work.gains(repairs, self.kept_back, progress)})
        repairs = Repairs(work.folder)
        yield Child(work.checkpoint, work.blueprint, width_multiple, repairs), repairs.record
        shutil.rmtree(work.folder, ignore_errors=True)
