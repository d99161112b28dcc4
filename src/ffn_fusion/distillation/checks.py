"""Checks that child, parent and settings fit together, made before anything starts."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, inside
from ffn_fusion.checkpoint.staging import DISTILLATION, read_manifest
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.sharding import check_sharding, launched_deepspeed
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.errors import BlueprintError, CheckpointError, MissingExtraError, UsageError
from ffn_fusion.families import require
from ffn_fusion.portability.fix import read_fixes
from ffn_fusion.surgery.build import check_blueprint


def check_pair(folder: Path, child: Checkpoint, blueprint: Blueprint, parent: Checkpoint) -> None:
    """Check that the child was made from the parent.

    Raises:
        CheckpointError: the vocabularies differ, or the child was made from another parent. BlueprintError: the child's
            blocks are not those of its blueprint.
    """
    if child.spec.vocab_size != parent.spec.vocab_size:
        raise CheckpointError(
            f"{folder}: vocabulary of {child.spec.vocab_size:,}, the parent's has {parent.spec.vocab_size:,}",
            "distil a child from the parent it was made of",
        )
    made_of = (read_manifest(folder) or {}).get("parent") or {}
    if made_of.get("fingerprint", parent.fingerprint) != parent.fingerprint:
        raise CheckpointError(
            f"{parent.name}: not the parent that {folder} was made of, which is {made_of.get('name')}",
            "name the child's own parent (--parent)",
        )
    check_blueprint(parent, blueprint)
    require(parent.spec, "distil")
    if read_fixes(folder) is not None or len(child.spec.blocks) != len(blueprint.kept_blocks):
        raise BlueprintError(
            f"{folder}: was rewritten for engines, its blocks aren't those of its blueprint",
            "distil the child first, then check --fix what comes out",
        )


def check_settings(settings: DistillSettings, world: int, device: str) -> None:
    """Check that the settings are consistent.

    Raises:
        UsageError: sizes that do not divide one another, an objective without terms, or a numbered device.
    """
    objective = settings.objective
    if not (objective.kl or objective.cosine or objective.lm):
        raise UsageError("nothing to train on: kl, cosine and lm are all 0", "give one of them a weight")
    if settings.batch % (settings.micro * world):
        raise UsageError(
            f"a batch of {settings.batch} windows can't be shared evenly: {settings.micro} at a time on each of "
            f"{world} process{'es' * (world > 1)}",
            f"choose a batch (--batch) that {settings.micro * world} divides",
        )
    if settings.lora and (settings.shard or launched_deepspeed()):
        raise UsageError("adapters aren't trained in shards", "leave --shard out, or train all (--trained all)")
    if settings.shard:
        check_sharding(world)
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: training takes cpu or cuda", "choose a GPU with CUDA_VISIBLE_DEVICES")


def check_extras(settings: DistillSettings, tracking: Tracking | None) -> None:
    """Check that the optional packages this training needs are installed.

    Raises:
        MissingExtraError: one of them is missing.
    """
    for package, what in (("accelerate", "distillation"), *([("peft", "LoRA")] if settings.lora else [])):
        if find_spec(package) is None:
            raise MissingExtraError(f"{what} needs {package}", "pip install 'ffn-fusion[train]'")
    if tracking is not None:
        tracking.check()


def check_cache(settings: CacheSettings | None, cosine: float, temperature: float) -> None:
    """Check that a teacher cache can serve the objective.

    Raises:
        UsageError: the objective needs hidden states, which no cache holds.
    """
    if settings is None:
        return
    if cosine:
        raise UsageError(
            "a teacher cache holds no hidden states, and the objective compares them",
            "leave the cache out (no --teacher-cache), or the hidden states (--cosine 0)",
        )
    assert settings.temperature == temperature


def read_record(child: Path) -> dict[str, Any] | None:
    """Return the distillation record of a child, or None if it was not distilled.

    Raises:
        CheckpointError: the record cannot be read.
    """
    path = child / DISTILLATION
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(inside(child, DISTILLATION).read_bytes())
        record["trained"] = [str(name) for name in record["trained"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read", "get the child again, or build it again") from error
    return record
