"""The stages of a job, from a recipe to a report, and the short ones' work."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from ffn_fusion.analysis.measure import analyze as measure
from ffn_fusion.analysis.measure import estimate_analysis as estimate_passes
from ffn_fusion.analysis.passes import PassEstimate
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer, read_licence
from ffn_fusion.checkpoint.staging import DISTILLATION, read_manifest
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.errors import OutputError
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.evaluation.quality import Quality
from ffn_fusion.evaluation.settings import TaskSettings
from ffn_fusion.evaluation.task_estimate import check_tasks
from ffn_fusion.latency.machine import machine
from ffn_fusion.modeling.load import load_model
from ffn_fusion.pipeline import tasks
from ffn_fusion.pipeline.benching import measure_widths_for, time_models
from ffn_fusion.pipeline.distilling import check_distillation, distill, distillation_estimates, distinct_texts
from ffn_fusion.pipeline.estimate import pace_of
from ffn_fusion.pipeline.job import Job, Stage
from ffn_fusion.pipeline.libraries import library, library_estimate, library_windows
from ffn_fusion.pipeline.models import scored_models
from ffn_fusion.pipeline.planning import check_early, given_plan
from ffn_fusion.pipeline.predicting import check_places
from ffn_fusion.pipeline.publish import publish
from ffn_fusion.pipeline.repairing import repair, repair_estimate, repair_windows
from ffn_fusion.pipeline.result import Sample
from ffn_fusion.pipeline.texts import calibration_windows, check_prompts, held_out_windows, state
from ffn_fusion.pipeline.widths import limited, measures_widths
from ffn_fusion.processes import current
from ffn_fusion.puzzle.store import COSTS, SCORES, WORK
from ffn_fusion.report.model_card import model_card
from ffn_fusion.surgery.build import build as write_child
from ffn_fusion.surgery.build import build_id, child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.child_config import form_of
from ffn_fusion.surgery.repairs import RECORD


def analyze(job: Job) -> None:
    """Measure the evidence, and how fast this machine did it: later estimates follow from that pace."""
    work: dict[str, int] = {}
    begun: dict[str, int] = {}  # what an earlier call had done already

    def progress(what: str, done: int, total: int) -> None:
        work[what] = total - begun.setdefault(what, done)
        job.progress(what, done, total)

    began = time.perf_counter()
    evidence = measure(
        job.analyzed,
        calibration_windows(job.parent, job.recipe.calibration, job.recipe.seed),
        job.recipe.analysis,
        seed=job.recipe.seed,
        device=job.recipe.device,
        memory=job.memory,
        workspace=job.space.analysis,
        on_plan=job.listener.measuring,
        progress=progress,
    )
    evidence.save(job.space.evidence)
    tokens = sum(work.values()) * job.recipe.calibration.context / current().world
    pace_of(job.parent.spec, tokens, time.perf_counter() - began).save(job.space.pace)


def estimate_analysis(job: Job) -> Sequence[PassEstimate]:
    """Estimate what each pass over the weights will take."""
    return estimate_passes(
        job.analyzed,
        calibration_windows(job.parent, job.recipe.calibration, job.recipe.seed),
        job.recipe.analysis,
        device=job.recipe.device,
        memory=job.memory,
        workspace=job.space.analysis,
    )


def widths(job: Job) -> None:
    """Measure how wide a fused FFN may be on this machine."""
    curve = measure_widths_for(job.recipe, job.parent.spec, job.progress)
    write_atomic(job.space.widths, (curve.model_dump_json(indent=1) + "\n").encode())


def plan(job: Job) -> None:
    """Write the decision down."""
    job.blueprint.save(job.space.blueprint)
    about = {"damage": job.plan.selection.score, "counted_speedup": job.plan.counted_speedup}
    _write_json(job.space.plan, about)


def build(job: Job) -> None:
    """Write the child with its first model card; the report puts the figures on the card.

    Raises:
        OutputError: another child is there, or the disk is too small.
    """
    section, output = job.recipe.build, job.built
    repairs = job.weights
    child = Child(job.parent, job.blueprint, section.width_multiple, repairs)
    if output.exists():  # finished, and killed before it was noted
        if (read_manifest(output) or {}).get("build") == build_id(child, section.max_shard_bytes):
            return
        raise OutputError(f"{output}: holds a child of another plan", "choose another output, or remove it first")
    card = model_card(
        output.name,
        job.blueprint,
        version("ffn-fusion"),
        licence=read_licence(job.parent.folder),
        repairs=repairs.record if repairs else None,
        form=form_of(child.spec),
    )
    write_child(
        job.parent,
        job.blueprint,
        output,
        width_multiple=section.width_multiple,
        max_shard_bytes=section.max_shard_bytes,
        repairs=repairs,
        model_card=card,
        on_bytes=job.bytes_told(child_bytes(child)),
    )


def score(job: Job) -> None:
    """Score all models on the held-out texts, and measure the child's own geometry in one forward pass."""
    models, controls = scored_models(job)
    windows = held_out_windows(job.parent, job.recipe.evaluation, job.recipe.seed)
    texts = evaluate(models, windows, device=job.recipe.device, progress=job.progress)
    child = open_folder(job.space.output)
    evidence = measure(
        child,
        calibration_windows(child, job.recipe.calibration, job.recipe.seed),
        AnalysisSettings(parts=(), scores=(), max_run=1, dtype=job.recipe.analysis.dtype),
        seed=job.recipe.seed,
        device=job.recipe.device,
        memory=job.memory,
        progress=job.progress,
    )
    evidence.save(job.space.child_evidence)
    quality = Quality(texts=texts, controls=tuple(controls))
    write_atomic(job.space.quality, (quality.model_dump_json(indent=1) + "\n").encode())


def bench(job: Job) -> None:
    """Time parent, pruned model and child."""
    latency = time_models(job.parent, job.blueprint, job.recipe, job.progress)
    write_atomic(job.space.latency, (latency.model_dump_json(indent=1) + "\n").encode())


def samples(job: Job) -> None:
    """Continue the prompts greedily by the parent and by the child."""
    section = job.recipe.samples
    texts: list[list[str]] = []
    for done, model in enumerate((job.parent, open_folder(job.space.output))):
        job.progress("samples", done, 2)
        texts.append(_generate(model, section.prompts, section.new_tokens, job.recipe.device))
    job.progress("samples", 2, 2)
    _write_json(job.space.samples, [vars(Sample(*row)) for row in zip(section.prompts, *texts, strict=True)])


@torch.inference_mode()
def _generate(checkpoint: Checkpoint, prompts: Sequence[str], new_tokens: int, device: str) -> list[str]:
    tokenizer = load_tokenizer(checkpoint.folder)
    model = load_model(checkpoint, torch.float32, device)
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        found.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def _analysis_inputs(job: Job) -> object:
    recipe = job.recipe
    return recipe.seed, recipe.device, recipe.calibration, recipe.analysis, state(recipe.calibration)


def _library_inputs(job: Job) -> object:
    recipe = job.recipe
    timed = (recipe.bench, recipe.build) if recipe.library.timed else ()
    texts = state(recipe.calibration), state(recipe.library)
    return recipe.seed, recipe.device, recipe.library, recipe.calibration, *texts, *timed


def _widths_inputs(job: Job) -> object:
    bench, spec, device = job.recipe.bench, job.parent.spec, job.recipe.device
    how = bench.engine, bench.engine_program, bench.batches, bench.dtype, device, machine(device)
    return spec.hidden_size, spec.blocks, how


def _check_plan(job: Job) -> None:
    if job.decided is not None:
        given_plan(job.parent, job.decided, job.recipe.plan.for_engines, job.recipe.build.width_multiple)
    else:
        check_early(job.parent, limited(job.recipe.plan, job.parent.spec), job.recipe.build.width_multiple)


def _repair_inputs(job: Job) -> object:
    recipe = job.recipe
    base = job.from_library.digest if job.from_library else None
    return recipe.repair, recipe.calibration, state(recipe.calibration), state(recipe.repair), base


def _evaluation_inputs(job: Job) -> object:
    section = job.recipe.evaluation
    return section.model_dump(mode="json", exclude=set(TaskSettings.model_fields)), state(section)


def _distillation_inputs(job: Job) -> object:
    recipe = job.recipe
    texts = TextSettings(texts=tuple(distinct_texts(recipe)))
    return recipe.distillation, recipe.calibration, recipe.repair.texts, state(texts)


STAGES = (
    Stage(
        "analyze",
        analyze,
        inputs=_analysis_inputs,
        results=lambda job: [job.space.evidence / "evidence.json", job.space.evidence / "evidence.safetensors"],
        scratch=lambda job: [job.space.analysis],
        check=lambda job: calibration_windows(job.parent, job.recipe.calibration, job.recipe.seed),
        estimate=estimate_analysis,
    ),
    Stage(
        "widths",
        widths,
        inputs=_widths_inputs,
        results=lambda job: [job.space.widths],
        wanted=measures_widths,
    ),
    Stage(
        "library",
        library,
        inputs=_library_inputs,
        results=lambda job: [job.space.library / name for name in (*SCORES.values(), COSTS)],
        scratch=lambda job: [job.space.library / WORK],
        wanted=lambda recipe: recipe.library.enabled,
        check=library_windows,
        estimate=library_estimate,
    ),
    Stage(
        "plan",
        plan,
        inputs=lambda job: (job.plan_settings, job.recipe.search),
        results=lambda job: [job.space.blueprint, job.space.plan],
        after=("analyze", "library"),
    ),
    Stage(
        "repair",
        repair,
        inputs=_repair_inputs,
        results=lambda job: [job.space.repairs / RECORD] if job.repairs else [],
        after=("plan",),
        wanted=lambda recipe: recipe.repair.enabled,
        check=repair_windows,
        estimate=repair_estimate,
    ),
    Stage(
        "build",
        build,
        inputs=lambda job: (job.recipe.build, job.has("distill"), job.from_library and job.from_library.digest),
        results=lambda job: [job.built / "config.json"],
        after=("plan", "repair"),
        check=_check_plan,
    ),
    Stage(
        "distill",
        distill,
        inputs=_distillation_inputs,
        results=lambda job: [job.space.output / DISTILLATION],
        after=("build",),
        scratch=lambda job: [job.space.distillation, job.space.windows],
        wanted=lambda recipe: recipe.distillation.enabled,
        check=check_distillation,
        estimate=distillation_estimates,
    ),
    Stage(
        "evaluate",
        score,
        inputs=_evaluation_inputs,
        results=lambda job: [job.space.quality, job.space.child_evidence / "evidence.json"],
        after=("build", "distill"),
        check=lambda job: held_out_windows(job.parent, job.recipe.evaluation, job.recipe.seed),
    ),
    Stage(
        "tasks",
        tasks.tasks,
        inputs=tasks.inputs,
        results=lambda job: [job.space.tasks],
        after=("build", "distill"),
        wanted=lambda recipe: bool(recipe.evaluation.tasks),
        check=lambda job: check_tasks(job.recipe.evaluation),
        estimate=tasks.estimate,
    ),
    Stage(
        "bench",
        bench,
        inputs=lambda job: job.recipe.bench,
        results=lambda job: [job.space.latency],
        after=("build", "distill"),
        wanted=lambda recipe: recipe.bench.enabled,
    ),
    Stage(
        "samples",
        samples,
        inputs=lambda job: job.recipe.samples,
        results=lambda job: [job.space.samples],
        after=("build", "distill"),
        check=lambda job: check_prompts(job.parent, job.recipe.samples.prompts),
    ),
    Stage(
        "report",
        publish,
        inputs=lambda job: job.planned_recipe,
        results=lambda job: [job.space.report],
        after=("evaluate", "tasks", "samples"),
        check=lambda job: check_places(job.recipe, job.parent),
    ),
)
"""All stages, in order; each is carried out once those before it are finished."""
