"""The last stage: write everything that was measured to the report, and to the child's model card."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from ffn_fusion.analysis.cost_count import steps
from ffn_fusion.analysis.evidence import Evidence, Geometry
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.safetensors_file import ITEM_SIZES
from ffn_fusion.checkpoint.sidecars import read_licence
from ffn_fusion.checkpoint.staging import MODEL_CARD
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.predicting import predictions
from ffn_fusion.pipeline.result import Result, result_of
from ffn_fusion.portability.check import check
from ffn_fusion.report.html import ReportData, write_report
from ffn_fusion.report.model_card import model_card
from ffn_fusion.surgery.child_config import form_of
from ffn_fusion.surgery.repairs import read_repairs


def publish(job: Job) -> None:
    """Write report.html in the workspace and README.md in the child."""
    recipe, result, evidence = job.planned_recipe, result_of(job), job.evidence
    blueprint, child = result.plan.blueprint, open_folder(recipe.output)
    repairs = read_repairs(recipe.output)
    card = model_card(
        recipe.output.name,
        blueprint,
        version("ffn-fusion"),
        read_licence(result.checkpoint.folder),
        result.quality,
        result.latency,
        repairs,
        distillation=result.distillation,
        form=form_of(child.spec),
    )
    write_atomic(recipe.output / MODEL_CARD, card.encode())
    write_report(
        result.workspace.report,
        ReportData(
            title=f"{recipe.output.name}: a fused child of {result.checkpoint.name}",
            model_name=result.checkpoint.name,
            revision=result.checkpoint.revision,
            blueprint=blueprint,
            evidence=evidence,
            quality=result.quality,
            latency=result.latency,
            recipe_yaml=recipe.to_yaml(),
            versions=versions(),
            costs=costs(result.checkpoint, child, blueprint),
            samples=[(sample.prompt, sample.parent, sample.child) for sample in result.samples],
            notes=_notes(result),
            child_geometry=_child_geometry(result),
            repairs=repairs,
            distillation=result.distillation,
            engines=check(child),
            predictions=predictions(recipe, result.checkpoint, blueprint),
        ),
    )


def _child_geometry(result: Result) -> list[tuple[float, Geometry]] | None:
    """Return the geometry of the child's blocks, each with the mean number of the parent blocks that it replaces."""
    folder = result.workspace.child_evidence
    if not (folder / "evidence.json").is_file():  # not measured
        return None
    middles = [sum(block.parent_blocks) / 2 for block in result.plan.blueprint.kept_blocks]
    return [(middles[row.block], row) for row in Evidence.load(folder).geometry]


def costs(parent: Checkpoint, child: Checkpoint, blueprint: Blueprint) -> dict[str, tuple[float, float]]:
    """Return what parent and child cost to store and to run, as pairs."""
    element = ITEM_SIZES[parent.dtype]
    return {
        "parameters": (parent.parameters, child.parameters),
        "bytes": (parent.nbytes, child.nbytes),
        "kv_bytes_per_token": (
            parent.spec.kv_bytes_per_token(element),
            child.spec.kv_bytes_per_token(element),
        ),
        "sequential_steps": (steps(Blueprint.identity(blueprint.parent)), steps(blueprint)),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages involved, for the report."""
    found = {"python": platform.python_version()}
    for package in ("ffn-fusion", "torch", "transformers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _notes(result: Result) -> list[str]:
    notes = [
        f"The plan expected {result.plan.counted_speedup:.2f} times the parent's decode speed by a simple count of "
        "weights and steps."
    ]
    if result.plan.selection.choices:
        notes.append(
            f"The damages that led to it add up to {result.plan.selection.score:.3f} nats a token (each was measured "
            "with that change alone; together they can be more or less than the sum)."
        )
    return notes
