"""A job: a recipe carried out as a list of stages. Finished stages are kept, so the same call resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.plan import Plan
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.staging import check_target, exclusive
from ffn_fusion.compute import compute_dtype
from ffn_fusion.errors import OutputError
from ffn_fusion.families import family_of
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.pipeline.estimate import remaining_seconds
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.planning import given_plan, make_plan, searched_plan
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.widths import limited
from ffn_fusion.pipeline.workspace import Workspace, stage_key
from ffn_fusion.processes import Progress
from ffn_fusion.puzzle.store import Library, LibraryWeights
from ffn_fusion.repair.places import places
from ffn_fusion.settings import DtypeName
from ffn_fusion.surgery.build import check_blueprint, child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import Repairs


def _nothing(job: Job) -> tuple[Path, ...]:
    return ()


def _always(recipe: Recipe) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One stage of a job.

    Args:
        work: carries the stage out. It reads what earlier stages left in the workspace, and leaves its own results.
        inputs: everything else that the results depend on; the stage's key is a hash of its text.
        results: files that exist once the stage is finished.
        after: names of the stages that it builds on, whose keys are part of its own.
        scratch: folders that only the work needs; removed once it is finished.
        wanted: whether a recipe asks for the stage.
        check: raises what can be known to fail before any stage begins.
        estimate: what the work will take.
    """

    name: str
    work: Callable[[Job], None]
    inputs: Callable[[Job], object]
    results: Callable[[Job], Sequence[Path]]
    after: tuple[str, ...] = ()
    scratch: Callable[[Job], Sequence[Path]] = _nothing
    wanted: Callable[[Recipe], bool] = _always
    check: Callable[[Job], object] = _nothing
    estimate: Callable[[Job], Any] | None = None


class Job:
    """Some stages of a recipe, with the model and the workspace that they share.

    Args:
        stages: in the order in which they are carried out; those that the recipe doesn't want are left out.
        decided: the blueprint to carry out, if the recipe's plan isn't to be made.
    """

    def __init__(
        self,
        recipe: Recipe,
        parent: Checkpoint,
        stages: Sequence[Stage],
        space: Workspace,
        listener: Listener,
        decided: Blueprint | None = None,
    ) -> None:
        self.recipe = recipe
        self.parent = parent
        self.stages = tuple(stage for stage in stages if stage.wanted(recipe))
        self.space = space
        self.listener = listener
        self.decided = decided
        self.memory = recipe.memory
        self.estimates: dict[str, Any] = {}
        """What stages to come will take, by their names; filled before anything is built."""

    @property
    def progress(self) -> Progress:
        """Where the work of a stage reports how far it is."""
        return self.listener.progress

    def bytes_told(self, total: int) -> Callable[[int], None]:
        """Return what a writer calls with every count of bytes, to report how far it is."""
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            self.progress("writing", done, total)

        return on_bytes

    def dtype(self, name: DtypeName) -> torch.dtype:
        """Return the dtype that a setting's name means here."""
        return compute_dtype(name, self.parent, self.recipe.device)

    def has(self, name: str) -> bool:
        """Whether a stage is part of the job."""
        return any(stage.name == name for stage in self.stages)

    @cached_property
    def evidence(self) -> Evidence:
        """What the analysis measured."""
        return Evidence.load(self.space.evidence)

    @cached_property
    def plan_settings(self) -> PlanSettings:
        """The recipe's plan, with the maximum width of the curve that it names or that the job measured."""
        settings = self.recipe.plan
        if self.has("widths"):
            settings = settings.model_copy(update={"width_curve": self.space.widths})
        return limited(settings, self.parent.spec)

    @cached_property
    def plan(self) -> Plan:
        """The decision: given, named in the recipe, chosen from a library, or chosen by the evidence.

        Raises:
            BlueprintError: not possible for this model, or the budget is out of reach. CheckError: an engine that must
                load the child can't.
        """
        multiple = self.recipe.build.width_multiple
        if self.decided is not None:
            return given_plan(self.parent, self.decided, self.recipe.plan.for_engines, multiple)
        if self.recipe.search.budgets:
            return searched_plan(self.parent, self.space.library, self.recipe.search, multiple)
        evidence = None if self.plan_settings.explicit else self.evidence
        return make_plan(self.parent, evidence, self.plan_settings, width_multiple=multiple)

    @property
    def planned_recipe(self) -> Recipe:
        """The recipe with the maximum width that its plan was made with."""
        return self.recipe.model_copy(update={"plan": self.plan_settings})

    @property
    def blueprint(self) -> Blueprint:
        """The blueprint of the child."""
        return self.plan.blueprint

    @cached_property
    def repairs(self) -> bool:
        """Whether the child is repaired: it is wanted and possible, and there is something to repair."""
        possible = family_of(self.parent.spec).can("repair") is None
        return self.recipe.repair.enabled and possible and bool(places(self.blueprint))

    @cached_property
    def from_library(self) -> LibraryWeights | None:
        """The weights of the library that the child is built from, if there is one.

        Raises:
            DataError: no library, or damaged. BlueprintError: it is of another model.
        """
        folder = self.recipe.build.library or (self.space.library if self.recipe.search.budgets else None)
        if folder is None or not (self.recipe.build.library or self.has("library")):
            return None
        library = Library.open(folder)
        return LibraryWeights(library, library.used(self.blueprint), child_spec(self.parent.spec, self.blueprint, 1))

    @property
    def weights(self) -> Repairs | None:
        """The child's weights that aren't those that surgery makes: of the library, and repaired ones over them."""
        return Repairs(self.space.repairs).over(self.from_library) if self.repairs else self.from_library

    @property
    def analyzed(self) -> Checkpoint | Child:
        """The model to analyze: the parent, or the child of a given blueprint."""
        return self.parent if self.decided is None else Child(self.parent, self.decided)

    @property
    def child(self) -> Child:
        """The child as it is decided, unrepaired."""
        return Child(self.parent, self.blueprint, self.recipe.build.width_multiple, self.from_library)

    @property
    def built(self) -> Path:
        """Where surgery's child is written: the output, unless that is distilled from it."""
        return self.space.undistilled if self.has("distill") else self.space.output

    def check(self) -> None:
        """Check everything that can be known to fail later. Raises: FfnFusionError."""
        if self.decided is not None:
            check_blueprint(self.parent, self.decided)
        if self.has("build") or self.has("distill"):
            for source in (self.parent.folder, self.space.undistilled):
                check_target(self.space.output, source, force=True)
            if self.space.output.exists() and not self.space.folder.exists():  # another program's, or another job's
                raise OutputError(f"{self.space.output}: exists already", "choose another output, or remove it first")
        for stage in self.stages:
            stage.check(self)

    def carry_out(self, *, dry_run: bool = False) -> None:
        """Carry out the stages that aren't finished, in order.

        Args:
            dry_run: stop after the plan, if the job makes one, with estimates of the other stages.

        Raises:
            FfnFusionError: a mistake that a person can fix; finished stages are kept.
            OutputError: another process works on the same output.
        """
        self.space.create()
        with exclusive(self.space.lock, f"{self.space.folder}: another job is working there"):
            finished = False
            try:
                self._carry_out(dry_run)
                finished = not dry_run
            finally:
                if self.space.temporary and (finished or not self.space.resumable):
                    self.space.remove()

    def _carry_out(self, dry_run: bool) -> None:
        decided = 1 + next((k for k, stage in enumerate(self.stages) if stage.name == "plan"), -1)
        self._save_recipe(self.recipe)
        for number, stage in enumerate(self.stages, 1):
            if number == decided + 1:
                self._before_building(self.stages[decided:], dry_run)
                if dry_run:
                    return
            self._finish(stage, number)

    def _before_building(self, rest: Sequence[Stage], dry_run: bool) -> None:
        """Report the plan, and what the stages after it will take."""
        pace = Pace.load(self.space.pace)
        if dry_run or pace:
            self.estimates = {stage.name: stage.estimate(self) for stage in rest if stage.estimate}
        if not self.has("build"):
            return
        self._save_recipe(self.planned_recipe)
        size = child_bytes(self.child)
        if self.estimates.get("distill"):
            self.listener.distilling(self.estimates["distill"], size)
        if self.estimates.get("tasks"):
            self.listener.asking(self.estimates["tasks"])
        remaining = remaining_seconds(self.recipe, self.parent.spec, size, self.estimates, pace) if pace else {}
        self.listener.planned(self.parent, self.plan, remaining)

    def _finish(self, stage: Stage, number: int) -> None:
        key, results = self._key(stage), stage.results(self)
        if self.space.done(stage.name, key, results):
            self.listener.skipped(stage.name)
        else:
            self.listener.stage(stage.name, number, len(self.stages))
            stage.work(self)
            self.space.note(stage.name, key)
        for folder in stage.scratch(self):
            shutil.rmtree(folder, ignore_errors=True)

    def _key(self, stage: Stage) -> str:
        earlier = [self._key(other) for other in self.stages if other.name in stage.after]
        return stage_key(self._models, *earlier, stage.inputs(self))

    @cached_property
    def _models(self) -> tuple[object, ...]:
        """What every key depends on: the parent's files, and the child if it is given."""
        return self.parent.fingerprint, self.parent.files_state, self.decided and self.decided.to_json()

    def _save_recipe(self, recipe: Recipe) -> None:
        """Write the recipe with the commit that its branch points to today."""
        pinned = recipe.model_copy(update={"revision": self.parent.revision})
        write_atomic(self.space.recipe, pinned.to_yaml().encode())
