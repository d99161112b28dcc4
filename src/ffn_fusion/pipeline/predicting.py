"""Predictions for the report: the times of parent, pruned model and child on the machines that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.evaluation.quality import PARENT
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.latency.hardware import Prediction, check_setting, predict
from ffn_fusion.latency.machines import Machine, find_machine
from ffn_fusion.latency.work import Setting
from ffn_fusion.pipeline.models import PRUNED, name_of_child
from ffn_fusion.pipeline.recipe import Recipe

_STORED = {"F32": "fp32", "F64": "fp32", "F16": "fp16"}


def places(recipe: Recipe) -> list[tuple[Machine, int]]:
    """Return the machines that the recipe names, and the number of devices of each that share a model.

    Raises:
        UsageError: a machine is unknown, or has fewer devices.
    """
    found = []
    for name in recipe.predict.machines:
        count, _, kind = name.partition("x") if _counted(name) else ("1", "", name)
        machine = find_machine(kind)
        machine.check_devices(int(count))
        found.append((machine, int(count)))
    return found


def _counted(name: str) -> bool:
    return name.partition("x")[0].isdigit() and not Path(name).exists()


def settings_of(recipe: Recipe, stored: str) -> list[Setting]:
    """Return the settings to predict: the benchmark's workloads, in the recipe's precision or the parent's."""
    weights = recipe.predict.weights or _STORED.get(stored, "bf16")
    kv = recipe.predict.kv or ("fp32" if weights == "fp32" else "bf16")
    bench = recipe.bench
    workloads = product(bench.contexts, bench.batches)
    return [Setting(1, batch, context, bench.new_tokens, weights, kv) for context, batch in workloads]


def check_places(recipe: Recipe, parent: Checkpoint) -> None:
    """Check the machines. Raises: UsageError: see ``places``; or devices can't share the parent's heads evenly."""
    for machine, devices in places(recipe):
        check_setting(machine, parent.spec, replace(settings_of(recipe, parent.dtype)[0], devices=devices))


def predictions(recipe: Recipe, parent: Checkpoint, blueprint: Blueprint) -> list[Mapping[str, Prediction]]:
    """Predict parent, pruned model and child; one entry for each machine and workload."""
    specs: dict[str, ModelSpec] = {
        PARENT: parent.spec,
        PRUNED: child_spec(parent.spec, blueprint.unfused(), recipe.build.width_multiple),
        name_of_child(recipe): child_spec(parent.spec, blueprint, recipe.build.width_multiple),
    }
    return [
        {name: predict(machine, spec, replace(setting, devices=devices)) for name, spec in specs.items()}
        for machine, devices in places(recipe)
        for setting in settings_of(recipe, parent.dtype)
    ]
