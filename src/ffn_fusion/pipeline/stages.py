"""What each stage does, from the recipe's sections to the rooms below. The verbs of the command line call these too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast, get_args

import torch

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.loadable import loadable_choices
from ffn_fusion.analysis.measure import analyze
from ffn_fusion.analysis.passes import PassEstimate
from ffn_fusion.analysis.rules import control_plans
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.blueprint import Blueprint, unfused
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.compute import compute_dtype
from ffn_fusion.data import (
    BUILT_IN_CALIBRATION,
    BUILT_IN_HELD_OUT,
    TokenWindows,
    load_tokenizer,
    make_windows,
)
from ffn_fusion.data.mixture import TextEntry, shares, where
from ffn_fusion.data.source import source_of
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.evaluation.evaluate import PARENT, evaluate
from ffn_fusion.evaluation.quality import Control, Quality
from ffn_fusion.latency.load import load_model
from ffn_fusion.pipeline.recipe import BuildSection, Recipe, RepairSection, Text
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.report.model_card import model_card, read_licence
from ffn_fusion.settings import DtypeName
from ffn_fusion.surgery.build import build, child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import is_repaired
from ffn_fusion.units import parse_bytes

PRUNED, FUSED, DISTILLED, UNREPAIRED = "pruned", "fused", "distilled", "unrepaired"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """One prompt, continued greedily by both."""

    prompt: str
    parent: str
    child: str


def state(section: Text | RepairSection) -> str:
    """Names, sizes and ages of a section's text files, so that a changed text is measured again."""
    return "\n".join(filter(None, (source_of(where(entry)).state() for entry in section.texts)))


def calibration_windows(folder: Path, section: Text, seed: int) -> list[TokenWindows]:
    """The calibration tokens, of every text by its weight."""
    texts: Sequence[TextEntry] = section.texts or BUILT_IN_CALIBRATION
    tokenizer = load_tokenizer(folder)
    return [
        make_windows(tokenizer, where(text), section.context, share, seed=seed)
        for text, share in zip(texts, shares(texts, section.tokens), strict=True)
    ]


def held_out_windows(folder: Path, section: Text, seed: int) -> list[TokenWindows]:
    """The evaluation tokens, so many of every text."""
    texts = [where(text) for text in section.texts or BUILT_IN_HELD_OUT]
    if len({source_of(text).label for text in texts}) < len(texts):
        raise DataError("two evaluation texts have the same name", "rename one; names label the tables")
    tokenizer = load_tokenizer(folder)
    return [make_windows(tokenizer, text, section.context, section.tokens, seed=seed) for text in texts]


def dtype_named(name: str, checkpoint: Checkpoint) -> torch.dtype:
    """The same for a name that a person wrote.

    Raises:
        UsageError: no such dtype.
    """
    if name not in get_args(DtypeName):
        raise UsageError(f"{name!r} is no dtype", f"use {', '.join(get_args(DtypeName))}")
    return compute_dtype(cast(DtypeName, name), checkpoint)


def measure(
    checkpoint: Checkpoint,
    recipe: Recipe,
    workspace: Path,
    on_plan: Callable[[PassEstimate], None],
    progress: Progress,
) -> Evidence:
    windows = calibration_windows(checkpoint.folder, recipe.calibration, recipe.seed)
    return analyze(
        checkpoint,
        windows,
        recipe.analysis,
        seed=recipe.seed,
        device=recipe.device,
        memory=parse_bytes(recipe.memory) if recipe.memory else None,
        workspace=workspace,
        on_plan=on_plan,
        progress=progress,
    )


def child_evidence(recipe: Recipe, progress: Progress) -> Evidence:
    """The built child's own geometry, on the calibration tokens: one forward pass."""
    child = open_folder(recipe.output)
    windows = calibration_windows(child.folder, recipe.calibration, recipe.seed)
    return analyze(
        child,
        windows,
        AnalysisSettings(parts=(), scores=(), max_run=1, dtype=recipe.analysis.dtype),
        seed=recipe.seed,
        device=recipe.device,
        memory=parse_bytes(recipe.memory) if recipe.memory else None,
        progress=progress,
    )


def build_child(child: Child, section: BuildSection, output: Path, progress: Progress) -> None:
    """Write the child with its first model card; evaluation puts its figures on the card later."""
    card = model_card(
        output.name,
        child.blueprint,
        version("ffn-fusion"),
        licence=read_licence(child.parent.folder),
        repairs=child.repairs.record if child.repairs else None,
    )
    build(
        child.parent,
        child.blueprint,
        output,
        width_multiple=section.width_multiple,
        max_shard_bytes=section.max_shard_bytes,
        repairs=child.repairs,
        model_card=card,
        on_bytes=bytes_told(child_bytes(child), progress),
    )


def bytes_told(total: int, progress: Progress) -> Callable[[int], None]:
    """What a writer calls with every count of bytes, to tell how far it is."""
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress("bytes", done, total)

    return on_bytes


def built_child(recipe: Recipe) -> Path:
    """Where surgery's child lies: it's the output, unless that is distilled from it."""
    return Workspace(recipe.output).undistilled if recipe.distillation.enabled else recipe.output


def name_of_child(recipe: Recipe) -> str:
    """What the child is called in tables."""
    return DISTILLED if recipe.distillation.enabled else FUSED


def score(
    checkpoint: Checkpoint, blueprint: Blueprint, evidence: Evidence, recipe: Recipe, progress: Progress
) -> Quality:
    """Parent, pruned (sequential), fused and distilled as they lie on disk, and what other rules would have chosen."""
    models: dict[str, TensorSource] = {
        PARENT: checkpoint,
        PRUNED: Child(checkpoint, unfused(blueprint)),
        FUSED: open_folder(built_child(recipe)),
    }
    if recipe.distillation.enabled:
        models[DISTILLED] = open_folder(recipe.output)
    controls = []
    if is_repaired(recipe.output):
        models[UNREPAIRED] = Child(checkpoint, blueprint)
        dropped, runs = format_blocks(blueprint.dropped_attentions), format_runs(blueprint.runs)
        which = "the fused" if recipe.distillation.enabled else "the same"
        meaning = f"{which} child before its output projections were solved anew"
        controls.append(Control(name=UNREPAIRED, meaning=meaning, dropped=dropped, runs=runs))
    if recipe.evaluation.controls:
        scored = [blueprint]
        allows = loadable_choices(checkpoint.spec, recipe.plan.for_engines)
        for control in control_plans(blueprint, evidence, recipe.plan, allows):
            if control.blueprint in scored:  # two ways to the same child: its figures are there already
                continue
            scored.append(control.blueprint)
            models[control.name] = Child(checkpoint, control.blueprint)
            controls.append(
                Control(
                    name=control.name,
                    meaning=control.meaning,
                    dropped=format_blocks(control.blueprint.dropped_attentions),
                    runs=format_runs(control.blueprint.runs),
                )
            )
    windows = held_out_windows(checkpoint.folder, recipe.evaluation, recipe.seed)
    texts = evaluate(models, windows, device=recipe.device, progress=progress)
    return Quality(texts=texts, controls=tuple(controls))


def continue_prompts(checkpoint: Checkpoint, recipe: Recipe, progress: Progress) -> list[Sample]:
    """Greedy continuations by the parent and the child."""
    section = recipe.samples
    texts: list[list[str]] = []
    for done, folder in enumerate((checkpoint.folder, recipe.output)):
        progress("samples", done, 2)
        texts.append(_generate(folder, section.prompts, section.new_tokens, recipe.device))
    progress("samples", 2, 2)
    return [Sample(*row) for row in zip(section.prompts, *texts, strict=True)]


@torch.inference_mode()
def _generate(folder: Path, prompts: Sequence[str], new_tokens: int, device: str) -> list[str]:
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, torch.float32, device)
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        found.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found
