"""The main job: recipe -> evidence -> blueprint -> child -> quality and latency -> report. Every stage resumes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.passes import PassEstimate
from ffn_fusion.analysis.plan import Plan
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.source import open_model
from ffn_fusion.checkpoint.staging import DISTILLATION, check_target, exclusive, read_manifest, write_atomic
from ffn_fusion.distillation.checks import read_record
from ffn_fusion.distillation.plan import DistillPlan
from ffn_fusion.errors import DataError, OutputError
from ffn_fusion.evaluation.quality import Quality
from ffn_fusion.latency.machine import machine
from ffn_fusion.latency.timing import Latency
from ffn_fusion.pipeline import benching, publish, stages
from ffn_fusion.pipeline.distill_run import RunDistillation, texts_state
from ffn_fusion.pipeline.estimate import Pace, remaining_seconds
from ffn_fusion.pipeline.planning import make_plan
from ffn_fusion.pipeline.preflight import preflight, preflight_parent
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.repairing import Repairing, repairing_of_run
from ffn_fusion.pipeline.result import Result
from ffn_fusion.pipeline.widths import limited, measures_widths
from ffn_fusion.pipeline.workspace import Workspace, stage_key
from ffn_fusion.processes import current
from ffn_fusion.repair.places import places
from ffn_fusion.repair.plan import RepairPlan
from ffn_fusion.surgery.build import build_id, child_bytes, files_state
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import RECORD, Repairs


class Listener(Protocol):
    """How a run tells what it's doing; the terminal implements it, and ``Silent`` says nothing."""

    def stage(self, name: str, number: int, total: int) -> None: ...

    def skipped(self, name: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def measuring(self, plan: PassEstimate) -> None:
        """What a pass of the analysis takes, before it begins."""

    def repairing(self, plan: RepairPlan) -> None:
        """What the repair takes, before it begins."""

    def distilling(self, plans: Sequence[DistillPlan], child_bytes: int) -> None:
        """What each stage of the distillation takes, before anything is built; the child before it stays."""

    def planned(self, checkpoint: Checkpoint, plan: Plan, remaining: Mapping[str, float]) -> None:
        """The plan, before anything is built; ``remaining``: estimated seconds of each stage to come."""


class Silent:
    def stage(self, name: str, number: int, total: int) -> None: ...

    def skipped(self, name: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def measuring(self, plan: PassEstimate) -> None: ...

    def repairing(self, plan: RepairPlan) -> None: ...

    def distilling(self, plans: Sequence[DistillPlan], child_bytes: int) -> None: ...

    def planned(self, checkpoint: Checkpoint, plan: Plan, remaining: Mapping[str, float]) -> None: ...


def run(recipe: Recipe, *, dry_run: bool = False, listener: Listener | None = None) -> Result:
    """Carry a recipe out, from where an earlier call with the same output stopped.

    Args:
        dry_run: stop before anything is built, with the plan.

    Raises:
        FfnFusionError: whatever a person can mend; what's finished stays for the next call.
    """
    workspace, recipe = Workspace(recipe.output), recipe.with_implied()
    preflight(recipe)
    listener = listener or Silent()
    checkpoint = open_parent(recipe, listener)
    preflight_parent(recipe, checkpoint)
    check_target(recipe.output, checkpoint.folder, force=True)
    _check_ours(workspace)
    workspace.create()
    with exclusive(workspace.lock, f"{workspace.folder}: another run is working there"):
        return _Run(recipe, workspace, checkpoint, listener).carry_out(dry_run)


def republish(folder: Path) -> Result:
    """Write a finished run's report and model card again.

    Args:
        folder: the run's workspace OUT.run, or the child OUT.

    Raises:
        DataError: no finished run there.
    """
    output = folder.with_suffix("") if folder.suffix == ".run" else folder
    workspace = Workspace(output)
    needed = (workspace.recipe, workspace.blueprint, workspace.quality, workspace.samples)
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise DataError(f"{workspace.folder}: no finished run there ({missing[0]} is missing)", "run its recipe first")
    recipe = Recipe.load(workspace.recipe)
    carried = _Run(recipe, workspace, open_parent(recipe, Silent()), Silent())
    evidence = Evidence.load(workspace.evidence)
    result = carried.result(carried.plan(evidence))
    publish.publish(recipe, result, evidence)
    return result


def open_parent(recipe: Recipe, listener: Listener) -> Checkpoint:
    """The recipe's model, under the name it goes by."""
    checkpoint = open_model(recipe.model, revision=recipe.revision, on_progress=_percent(listener))
    return replace(checkpoint, name=recipe.base_model) if recipe.base_model else checkpoint


def _percent(listener: Listener) -> Callable[[str, float], None]:
    return lambda what, share: listener.progress(what, round(100 * share), 100)


def _check_ours(workspace: Workspace) -> None:
    """An output that another program made, or another run, is never touched."""
    if workspace.output.exists() and not workspace.folder.exists():
        raise OutputError(f"{workspace.output}: exists already", "choose another output, or remove it first")


class _Run:
    """One run: each method is a stage, called in order; keys chain, so a change redoes what depends on it."""

    STAGES = ("analyze", "widths", "plan", "repair", "build", "distill", "evaluate", "bench", "samples", "report")

    def __init__(self, recipe: Recipe, workspace: Workspace, checkpoint: Checkpoint, listener: Listener) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.checkpoint = checkpoint
        self.listener = listener
        self.distillation = RunDistillation(recipe, checkpoint, workspace) if recipe.distillation.enabled else None
        left_out = {"distill": not self.distillation, "widths": not measures_widths(recipe)}
        self.names = tuple(name for name in self.STAGES if not left_out.get(name))

    def carry_out(self, dry_run: bool) -> Result:
        recipe, space = self.recipe, self.workspace
        pinned = recipe.model_copy(update={"revision": self.checkpoint.revision})  # the commit that a branch stood for
        write_atomic(space.recipe, pinned.to_yaml().encode())
        parent = (self.checkpoint.fingerprint, files_state(self.checkpoint))
        key = stage_key(
            parent,
            recipe.seed,
            recipe.device,
            recipe.calibration,
            recipe.analysis,
            stages.state(recipe.calibration),
        )
        evidence_files = [space.evidence / "evidence.json", space.evidence / "evidence.safetensors"]
        self._stage("analyze", key, evidence_files, lambda: self._analyze().save(space.evidence))
        shutil.rmtree(space.analysis, ignore_errors=True)
        evidence = Evidence.load(space.evidence)
        recipe = self._limit_width()
        plan = self.plan(evidence)
        key = stage_key(key, recipe.plan, recipe.repair.enabled)
        self._stage("plan", key, [space.blueprint, space.plan], lambda: self._write_plan(plan))
        distill_plans = self._distill_plans(plan)
        self.listener.planned(self.checkpoint, plan, self._remaining(plan, distill_plans))
        if dry_run:
            return Result(self.checkpoint, plan, space, distillation_plans=tuple(distill_plans))
        if self._repairs(plan.blueprint):
            texts = stages.state(recipe.calibration), stages.state(recipe.repair)
            key = stage_key(key, recipe.repair, recipe.calibration, texts)
            self._stage("repair", key, [space.repairs / RECORD], lambda: self._repair(plan.blueprint))
        key = stage_key(key, recipe.build, *(["distilled then"] if self.distillation else []))
        built = stages.built_child(recipe)
        self._stage("build", key, [built / "config.json"], lambda: self._build(plan.blueprint, built))
        if self.distillation:
            key = stage_key(key, recipe.distillation, recipe.calibration, recipe.repair.texts, texts_state(recipe))
            distilled = [recipe.output / DISTILLATION]
            self._stage("distill", key, distilled, self._distill)
            for folder in (space.distillation, space.windows):
                shutil.rmtree(folder, ignore_errors=True)
        quality_key = stage_key(key, recipe.evaluation, stages.state(recipe.evaluation))
        scored = [space.quality, space.child_evidence / "evidence.json"]
        self._stage("evaluate", quality_key, scored, lambda: self._evaluate(plan.blueprint, evidence))
        if recipe.bench.enabled:
            self._stage("bench", stage_key(key, recipe.bench), [space.latency], lambda: self._bench(plan.blueprint))
        samples_key = stage_key(key, recipe.samples)
        self._stage("samples", samples_key, [space.samples], lambda: self._samples())
        result = self.result(plan)
        report_key = stage_key(quality_key, recipe, samples_key)
        self._stage("report", report_key, [space.report], lambda: publish.publish(recipe, result, evidence))
        return result

    def _limit_width(self) -> Recipe:
        """The recipe with the plan's maximum width in it, measured if need be; the workspace keeps it so."""
        recipe, space = self.recipe, self.workspace
        section, spec = recipe.plan, self.checkpoint.spec
        if measures_widths(recipe):
            asked = recipe.bench
            how = asked.engine, asked.engine_program, asked.batches, asked.dtype, recipe.device, machine(recipe.device)
            key = stage_key(spec.hidden_size, spec.blocks, *how)
            self._stage("widths", key, [space.widths], self._measure_widths)
            section = section.model_copy(update={"width_curve": space.widths})
        pinned = {"plan": limited(section, spec)}
        self.recipe = recipe.model_copy(update=pinned)
        write_atomic(space.recipe, Recipe.load(space.recipe).model_copy(update=pinned).to_yaml().encode())
        return self.recipe

    def _measure_widths(self) -> None:
        curve = benching.measure_widths_for(self.recipe, self.checkpoint.spec, self.listener.progress)
        write_atomic(self.workspace.widths, (curve.model_dump_json(indent=1) + "\n").encode())

    def plan(self, evidence: Evidence) -> Plan:
        recipe = self.recipe
        return make_plan(
            self.checkpoint,
            evidence,
            recipe.plan,
            width_multiple=recipe.build.width_multiple,
        )

    def _stage(self, name: str, key: str, results: list[Path], work: Callable[[], None]) -> None:
        if self.workspace.done(name, key, results):
            self.listener.skipped(name)
            return
        self.listener.stage(name, self.names.index(name) + 1, len(self.names))
        self.workspace.stage(name, key, results, work)

    def _analyze(self) -> Evidence:
        work: dict[str, int] = {}
        begun: dict[str, int] = {}  # what an earlier call had done already

        def progress(what: str, done: int, total: int) -> None:
            work[what] = total - begun.setdefault(what, done)
            self.listener.progress(what, done, total)

        start = time.perf_counter()
        evidence = stages.measure(
            self.checkpoint, self.recipe, self.workspace.analysis, self.listener.measuring, progress
        )
        tokens = sum(work.values()) * self.recipe.calibration.context / current().world
        Pace(tokens / (time.perf_counter() - start)).save(self.workspace.pace)
        return evidence

    def _distill_plans(self, plan: Plan) -> list[DistillPlan]:
        """What the distillation takes, once it's known which child it's for."""
        if self.distillation is None or self.recipe.output.exists():
            return []
        child = Child(self.checkpoint, plan.blueprint, self.recipe.build.width_multiple)
        plans, size = self.distillation.plans(child, Pace.load(self.workspace.pace)), child_bytes(child)
        self.distillation.check_planned(plans, size)
        self.listener.distilling(plans, size)
        return plans

    def _remaining(self, plan: Plan, distill_plans: Sequence[DistillPlan]) -> dict[str, float]:
        pace = Pace.load(self.workspace.pace)
        if pace is None:
            return {}
        flops = 0.0
        if self._repairs(plan.blueprint):
            flops = self._repairing(plan.blueprint).plan().flops
        size = child_bytes(Child(self.checkpoint, plan.blueprint))
        distilling = sum(plan.flops for plan in distill_plans)
        return remaining_seconds(self.recipe, self.checkpoint, size, flops, pace, distilling)

    def _write_plan(self, plan: Plan) -> None:
        plan.blueprint.save(self.workspace.blueprint)
        about = {"damage": plan.selection.score, "counted_speedup": plan.counted_speedup}
        write_atomic(self.workspace.plan, (json.dumps(about, indent=1) + "\n").encode())

    def _repairs(self, blueprint: Blueprint) -> bool:
        """Whether there is something to repair, and it's wanted."""
        return self.recipe.repair.enabled and bool(places(blueprint))

    def _repair(self, blueprint: Blueprint) -> None:
        self._repairing(blueprint).carry_out(self.listener.repairing, self.listener.progress)

    def _repairing(self, blueprint: Blueprint) -> Repairing:
        return repairing_of_run(self.recipe, self.checkpoint, blueprint, self.workspace.repairs)

    def _build(self, blueprint: Blueprint, output: Path) -> None:
        section = self.recipe.build
        repairs = Repairs(self.workspace.repairs) if self._repairs(blueprint) else None
        child = Child(self.checkpoint, blueprint, section.width_multiple, repairs)
        if output.exists():  # finished, and killed before it was noted
            manifest = read_manifest(output) or {}
            if manifest.get("build") == build_id(child, section.max_shard_bytes):
                return
            raise OutputError(f"{output}: holds a child of another plan", "choose another output, or remove it first")
        stages.build_child(child, section, output, self.listener.progress)

    def _distill(self) -> None:
        assert self.distillation is not None
        self.distillation.carry_out(self.listener.progress)

    def _evaluate(self, blueprint: Blueprint, evidence: Evidence) -> None:
        quality = stages.score(self.checkpoint, blueprint, evidence, self.recipe, self.listener.progress)
        stages.child_evidence(self.recipe, self.listener.progress).save(self.workspace.child_evidence)
        write_atomic(self.workspace.quality, (quality.model_dump_json(indent=1) + "\n").encode())

    def _bench(self, blueprint: Blueprint) -> None:
        latency = benching.time_models(self.checkpoint, blueprint, self.recipe, self.listener.progress)
        write_atomic(self.workspace.latency, (latency.model_dump_json(indent=1) + "\n").encode())

    def _samples(self) -> None:
        samples = stages.continue_prompts(self.checkpoint, self.recipe, self.listener.progress)
        write_atomic(self.workspace.samples, (json.dumps([vars(s) for s in samples], indent=1) + "\n").encode())

    def result(self, plan: Plan) -> Result:
        """What the stages left in the workspace."""
        space = self.workspace
        return Result(
            self.checkpoint,
            plan,
            space,
            Quality.model_validate_json(space.quality.read_bytes()),
            Latency.model_validate_json(space.latency.read_bytes()) if self.recipe.bench.enabled else None,
            tuple(stages.Sample(**entry) for entry in json.loads(space.samples.read_bytes())),
            read_record(self.recipe.output),
        )
