"""The stage ``distill``: train the child, in one training or several, to match its parent's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.safetensors_file import TensorInfo
from ffn_fusion.checkpoint.sidecars import read_licence
from ffn_fusion.checkpoint.staging import bytes_in, check_space, read_manifest
from ffn_fusion.data.hub_text import PREFIX
from ffn_fusion.data.mixture import TextEntry
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.data.text import BUILT_IN_CALIBRATION
from ffn_fusion.data.window_file import read_origin
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.distillation.estimate import DistillEstimate
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.sharding import launched_sharded
from ffn_fusion.distillation.staged import Gains, Staged, of_stage
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.distillation.training import Description, Training
from ffn_fusion.distillation.write import AsStored, Weights, distilled_id, write_distilled
from ffn_fusion.errors import OutputError, UsageError
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.evaluation.quality import PARENT
from ffn_fusion.families.layout import sub_block_parameters
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.texts import all_windows, calibration_windows, held_out_windows, training_windows, without
from ffn_fusion.processes import Progress, silent
from ffn_fusion.report.model_card import model_card
from ffn_fusion.surgery.build import child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.child_config import form_of
from ffn_fusion.surgery.repairs import read_repairs

BEFORE, AFTER = "before", "after"
_TRIED = 4096
"""Tokens of every text that are checked before anything is measured."""


def distill(job: Job) -> None:
    """Train the child stage by stage, and write it to the job's output: whole, or not at all.

    Raises:
        OutputError: another child is there. Also raises whatever ``distill_child`` raises.
    """
    output = job.space.output
    learnt, scored = cut_windows(job, job.space.windows, job.progress)
    staged = _staged(job, learnt)
    other = OutputError(f"{output}: holds another child", "choose another output, or remove it first")
    training = staged.trainings[0]
    if not output.exists():
        staged.check(beside=training.checkpoint.nbytes)
    elif staged.done < len(staged.trainings):
        raise other
    if "distill" not in job.estimates:
        job.listener.distilling(staged.plans(), 0)
    weights, record = staged.carry_out(partial(measure, scored), job.progress)
    record = {**record, "sources": sources(staged)}
    size = job.recipe.build.max_shard_bytes
    if output.exists():  # finished, and killed before it was noted
        if (read_manifest(output) or {}).get("build") != distilled_id(training.child, record, size):
            raise other
        return
    write_distilled(
        training.checkpoint,
        weights,
        record,
        output,
        model_card=distilled_card(output.name, training, record),
        max_shard_bytes=size,
        on_bytes=job.bytes_told(training.checkpoint.nbytes),
    )


def check_distillation(job: Job) -> None:
    """Check what can be known before the child is built, or trained.

    Raises:
        UsageError, DataError, CheckpointError, BlueprintError, OutputError, MissingExtraError: one line each, which
            names the stage.
    """
    builds = job.has("build")
    if not builds:
        _training(job, job.recipe.distillation.trainings[0], ()).check_models()
    trainings = _trainings(job, cut_windows(job, None, silent)[0])
    for text in distinct_texts(job.recipe):
        _check_tokens(job, text)
    for number, training in enumerate(trainings, 1):
        with of_stage(number, len(trainings)):
            training.check_texts()
            training.check_early()
    if builds:
        learns = any(training.settings.trained == "all" for training in trainings)
        spec = job.parent.spec
        least = job.parent.parameters - sum(sub_block_parameters(spec, block.attention) for block in spec.blocks)
        _check_space(job, 3 * 4 * least * (1 + 2 * learns))


def distillation_estimates(job: Job) -> list[DistillEstimate]:
    """Estimate what each training will take; nothing if the child is there already.

    Raises:
        OutputError: the disk is too small for the checkpoints, and for the child before and after.
    """
    if job.space.output.exists():
        return []
    staged = _staged(job, cut_windows(job, None, silent)[0])
    if not job.has("build"):
        staged.check()
        return staged.plans()
    plans = staged.plans(timed=False)
    _check_space(job, max(plan.disk_bytes for plan in plans) + 2 * child_bytes(job.child))
    pace = Pace.load(job.space.pace)
    if pace is None:
        return plans
    return [replace(plan, seconds=plan.flops / pace.block_flops) for plan in plans]


def cut_windows(
    job: Job, files: Path | None, progress: Progress
) -> tuple[list[list[TokenWindows]], list[TokenWindows]]:
    """Cut the windows of every training, and those that its gain is measured on.

    A job that evaluates measures the gain on the evaluation's texts; any other keeps back a few windows of the first
    training's texts, and no training sees them.

    Args:
        files: a folder for the windows; None only counts them.
    """
    recipe, parent = job.recipe, job.parent
    trainings, used, kept_back = recipe.distillation.trainings, list[list[TokenWindows]](), list[TokenWindows]()
    for number, section in enumerate(trainings, 1):
        with of_stage(number, len(trainings)):
            text = section.model_copy(update={"texts": training_texts(recipe, section)})
            place = files / f"stage-{number}" if files else None
            if job.has("evaluate"):
                found = all_windows(parent, text, recipe.seed, place, progress)
            else:
                found, others = training_windows(parent, text, recipe.seed, place, progress)
                if number == 1:
                    kept_back = others
                elif files is not None:
                    found = [part for parts in without(found, kept_back) for part in parts]
            used.append(found)
    if job.has("evaluate") and files is not None:
        kept_back = held_out_windows(parent, recipe.evaluation, recipe.seed)
    return used, kept_back


def _training(
    job: Job,
    section: DistillSettings,
    texts: Sequence[TokenWindows],
    described: Description | None = None,
) -> Training:
    cache = None
    if section.teacher_cache:
        cache = CacheSettings(section.teacher_cache, section.top_k, section.objective.temperature)
    return Training(
        job.built,
        job.parent,
        texts,
        job.space.distillation,
        section,
        job.dtype(section.teacher_dtype),
        cache,
        job.recipe.device,
        job.memory,
        tracking(job.recipe),
        description=described,
        seed=job.recipe.seed,
    )


def _trainings(
    job: Job, windows: Sequence[Sequence[TokenWindows]], described: Description | None = None
) -> list[Training]:
    """Return the recipe's trainings, each on its windows.

    Args:
        described: the child, if it isn't built yet.
    """
    sections = job.recipe.distillation.trainings
    for number, section in enumerate(sections, 1):
        if launched_sharded() and not section.shard:
            hint = "write shard: true under distillation"
            with of_stage(number, len(sections)):
                raise UsageError("accelerate's configuration asks for FSDP, and the recipe doesn't", hint)
    return [_training(job, *pair, described) for pair in zip(sections, windows, strict=True)]


def _staged(job: Job, windows: Sequence[Sequence[TokenWindows]]) -> Staged:
    unbuilt = job.has("build") and not job.built.exists()
    described = (_described(job.child), job.blueprint) if unbuilt else None
    return Staged.of(_trainings(job, windows, described), job.space.distillation)


def _described(child: Child) -> Checkpoint:
    """Describe a child that isn't built by the sizes of its tensors."""
    tensors = {name: TensorInfo(name, t.dtype, t.shape, Path(), 0) for name, t in child.tensors.items()}
    return Checkpoint(Path(), child.spec, tensors, "", "")


def tracking(recipe: Recipe) -> Tracking | None:
    """Where and with what a recipe logs its training."""
    track, output = recipe.distillation.track, recipe.output
    return Tracking(track, output.with_name(f"{output.name}.logs")) if track else None


def training_texts(recipe: Recipe, section: DistillSettings) -> tuple[TextEntry, ...]:
    """Return a training's own texts, or the repair's, or the calibration's."""
    return section.texts or recipe.repair.texts or recipe.calibration.texts or BUILT_IN_CALIBRATION


def distinct_texts(recipe: Recipe) -> list[TextEntry]:
    """Return all texts that the trainings read."""
    texts = (text for section in recipe.distillation.trainings for text in training_texts(recipe, section))
    return list(dict.fromkeys(texts))


def _check_tokens(job: Job, text: TextEntry) -> None:
    """Try a little of a text. Raises: CheckpointError: the model doesn't know one of its tokens."""
    few = TextSettings(texts=(text,), tokens=_TRIED, context=min(s.context for s in job.recipe.distillation.trainings))
    calibration_windows(job.parent, few, job.recipe.seed)


def _check_space(job: Job, needed: int) -> None:
    if job.space.output.exists():  # it exists already
        return
    made = (job.space.distillation, job.space.undistilled)
    check_space(job.space.distillation, max(0, needed - sum(map(bytes_in, made))))


def measure(
    texts: Sequence[TokenWindows], training: Training, weights: Weights, earlier: Gains | None, progress: Progress
) -> Gains:
    """Measure what a training gained, text by text: KL to the parent (nats a token) and perplexity.

    Args:
        texts: windows that took no part in it.
        earlier: the gains of the previous training, which end where these begin; ignored if they are of other texts.
    """
    if not texts:
        return []
    models: dict[str, TensorSource] = {PARENT: training.parent}
    if [(row["text"], row["tokens"]) for row in earlier or ()] != [(text.label, text.tokens) for text in texts]:
        earlier = None
        models[BEFORE] = AsStored(training.checkpoint, open_folder(training.begins))
    models[AFTER] = AsStored(training.checkpoint, weights)
    found = evaluate(models, texts, device=training.device, progress=progress)
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


def sources(staged: Staged) -> list[dict[str, Any]]:
    """Return each text and the number of its tokens that all trainings read; local files only by their label."""
    found: dict[str, dict[str, Any]] = {}
    for text in (text for training in staged.trainings for text in training.texts):
        assert text.in_file is not None
        origin = read_origin(text.in_file.path)
        row = {"text": text.label, "tokens": 0, **(origin if origin["source"].startswith(PREFIX) else {})}
        found.setdefault(origin["source"], row)["tokens"] += text.tokens
    return list(found.values())


def distilled_card(name: str, training: Training, record: dict[str, Any]) -> str:
    """Return the model card of a child that was just distilled."""
    return model_card(
        name,
        training.blueprint,
        version("ffn-fusion"),
        read_licence(training.parent.folder) or read_licence(training.child),
        repairs=read_repairs(training.child),
        form=form_of(training.parent.spec),
        distillation=record,
    )
