"""The workspace of a job: where each stage leaves its results, and the ledger of finished stages.

A stage's key is a hash of everything that its results depend on: its part of the recipe, the parent's files, and the
keys of the stages that it builds on. A stage whose key is in the ledger and whose results are there isn't carried out
again, so a changed recipe redoes only what depends on the change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ffn_fusion.checkpoint.notes import Notes


class Workspace:
    """Paths of a job's results, and the ledger ``stages.json``.

    Args:
        output: the folder of the child.
        folder: the workspace; by default ``OUT.run`` beside the child ``OUT``.
        evidence: the folder of the evidence, if it isn't in the workspace.
        child: the child to distil, if the job doesn't build it.
        library: the folder of the library, if it isn't in the workspace.
    """

    def __init__(
        self,
        output: Path,
        folder: Path | None = None,
        *,
        evidence: Path | None = None,
        child: Path | None = None,
        library: Path | None = None,
    ) -> None:
        self.output = output
        self.folder = folder or output.with_name(output.name + ".run")
        self.temporary = folder is not None
        self.recipe = self.folder / "recipe.yaml"
        self.evidence = evidence or self.folder / "evidence"
        self.child_evidence = self.folder / "child-evidence"
        self.library = library or self.folder / "library"
        self.repairs = self.folder / "repairs"
        self.undistilled = child or self.folder / "undistilled"
        self.distillation = self.folder / ".distillation"  # checkpoints, during the training
        self.windows = self.folder / ".windows"  # tokens to train on, during the training
        self.analysis = self.folder / ".analysis"  # finished blocks, during the analysis
        self.widths = self.folder / "widths.json"
        self.pace = self.folder / "pace.json"
        self.blueprint = self.folder / "blueprint.json"
        self.plan = self.folder / "plan.json"
        self.quality = self.folder / "quality.json"
        self.tasks = self.folder / "tasks.json"
        self.task_results = self.folder / "tasks"  # of each model on each task, example by example
        self.benched = self.folder / ".bench"  # models, while they are timed
        self.latency = self.folder / "latency.json"
        self.samples = self.folder / "samples.json"
        self.report = self.folder / "report.html"
        self.lock = self.folder / ".lock"

    @classmethod
    def hidden(
        cls, output: Path, *, evidence: Path | None = None, child: Path | None = None, library: Path | None = None
    ) -> Workspace:
        """The workspace ``.OUT.work`` of a job that leaves nothing but its output; it is removed at the end."""
        folder = output.with_name(f".{output.name}.work")
        return cls(output, folder, evidence=evidence, child=child, library=library)

    def create(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove the folder and all results in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def resumable(self) -> bool:
        """Whether removing the folder would lose work: all that can be resumed is noted in JSON files."""
        return any(self.folder.rglob("*.json"))

    def done(self, stage: str, key: str, results: Sequence[Path]) -> bool:
        """Whether the stage was finished with this key and its results are still there."""
        return self._ledger.values.get(stage) == key and all(path.exists() for path in results)

    def note(self, stage: str, key: str) -> None:
        """Note in the ledger that the stage is finished."""
        self._ledger.write({**self._ledger.values, stage: key})

    @property
    def _ledger(self) -> Notes:
        return Notes(self.folder, version("ffn-fusion"), "stages.json")


def stage_key(*parts: object) -> str:
    """Return a hash over everything that a stage's results depend on."""
    return hashlib.sha256(json.dumps([*map(str, parts)]).encode()).hexdigest()
