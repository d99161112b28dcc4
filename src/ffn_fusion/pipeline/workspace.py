"""The workspace of a run, ``OUT.run`` beside the child ``OUT``: what every stage left, and which stages are done.

A stage's key is a hash of all that its result depends on: its part of the recipe, the parent's files, the stages before
it. A stage whose key and results are there is not done again; a changed recipe redoes just what depends on the change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from ffn_fusion.checkpoint.staging import write_atomic


class Workspace:
    """Names in the folder, and the ledger of finished stages (``stages.json``)."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".run")
        self.recipe = self.folder / "recipe.yaml"
        self.evidence = self.folder / "evidence"
        self.child_evidence = self.folder / "child-evidence"
        self.repairs = self.folder / "repairs"
        self.undistilled = self.folder / "undistilled"  # the child before its distillation
        self.distillation = self.folder / ".distillation"  # checkpoints, while it's trained
        self.windows = self.folder / ".windows"  # tokens to learn from, while it's trained
        self.analysis = self.folder / ".analysis"  # finished blocks, while the analysis runs
        self.widths = self.folder / "widths.json"
        self.pace = self.folder / "pace.json"
        self.blueprint = self.folder / "blueprint.json"
        self.plan = self.folder / "plan.json"
        self.quality = self.folder / "quality.json"
        self.benched = self.folder / ".bench"  # models, while they're timed
        self.latency = self.folder / "latency.json"
        self.samples = self.folder / "samples.json"
        self.report = self.folder / "report.html"
        self.lock = self.folder / ".lock"
        self._ledger_path = self.folder / "stages.json"

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def done(self, stage: str, key: str, results: Sequence[Path]) -> bool:
        """Whether the stage was finished with this key and its results are still there."""
        return self._ledger().get(stage) == key and all(path.exists() for path in results)

    def stage(self, name: str, key: str, results: Sequence[Path], work: Callable[[], None]) -> bool:
        """Do a stage unless it's done. Returns whether there was work to do."""
        if self.done(name, key, results):
            return False
        work()
        write_atomic(self._ledger_path, (json.dumps({**self._ledger(), name: key}, indent=1) + "\n").encode())
        return True

    def _ledger(self) -> dict[str, str]:
        try:
            ledger = json.loads(self._ledger_path.read_bytes())
        except (OSError, ValueError):
            return {}
        return ledger if isinstance(ledger, dict) else {}


def stage_key(*parts: object) -> str:
    """A hash over everything that a stage's result depends on."""
    text = json.dumps([version("ffn-fusion"), *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()
