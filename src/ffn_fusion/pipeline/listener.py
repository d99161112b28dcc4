"""What a job tells while it is carried out. This module imports nothing heavy, so that ``--help`` is fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ffn_fusion.analysis.passes import PassEstimate
    from ffn_fusion.analysis.plan import Plan
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.distillation.estimate import DistillEstimate
    from ffn_fusion.evaluation.task_estimate import TasksEstimate
    from ffn_fusion.puzzle.estimate import LibraryEstimate
    from ffn_fusion.repair.estimate import RepairEstimate


class Listener:
    """Hears what a job does. This one does nothing; subclasses override what they want to hear."""

    def opened(self, checkpoint: Checkpoint) -> None:
        """The model is opened; nothing is measured yet."""

    def stage(self, name: str, number: int, total: int) -> None:
        """A stage begins."""

    def skipped(self, name: str) -> None:
        """A stage was finished by an earlier call."""

    def progress(self, what: str, done: int, total: int) -> None:
        """A part of the present stage's work is done."""

    def measuring(self, plan: PassEstimate) -> None:
        """What a pass of the analysis will take; called before it begins."""

    def stocking(self, making: LibraryEstimate, scoring: PassEstimate) -> None:
        """What making a library, and scoring its entries, will take; called before it begins."""

    def repairing(self, plan: RepairEstimate) -> None:
        """What the repair will take; called before it begins."""

    def distilling(self, plans: Sequence[DistillEstimate], child_bytes: int) -> None:
        """What each stage of the distillation will take.

        Args:
            child_bytes: size of the child that is built first and kept, 0 if there is none.
        """

    def asking(self, plan: TasksEstimate) -> None:
        """What the tasks will ask of every model."""

    def planned(self, checkpoint: Checkpoint, plan: Plan, remaining: Mapping[str, float]) -> None:
        """The plan, before anything is built.

        Args:
            remaining: estimated seconds of each stage to come.
        """
