"""Write weights that another program trained as a child: after continued pre-training, alignment and the like."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder, torch_dtype
from ffn_fusion.checkpoint.sidecars import read_licence
from ffn_fusion.checkpoint.staging import check_target, read_manifest
from ffn_fusion.distillation.checks import read_record
from ffn_fusion.distillation.write import write_distilled
from ffn_fusion.errors import BlueprintError, CheckpointError
from ffn_fusion.portability.history import read_history
from ffn_fusion.report.model_card import model_card
from ffn_fusion.surgery.build import BLUEPRINT
from ffn_fusion.surgery.child_config import form_of
from ffn_fusion.surgery.repairs import read_repairs


def write_trained(child: Path, trained: Path, how: str, target: Path) -> Path:
    """Write what ``save_pretrained`` left in ``trained`` as a child like any other.

    Dtypes, config, tokenizer, blueprint and records are those of ``child``. ``distillation.json`` says which tensors
    changed and how; the child's previous record is kept in it under ``before``.

    Args:
        how: what was done, as text for the model card: "continued pre-training on 1,024 tokens".

    Raises:
        BlueprintError: the child has no blueprint, or was rewritten for engines.
        CheckpointError: ``trained`` holds another model than the child.
        TrainingError: a weight isn't finite.
        OutputError: ``target`` exists.
    """
    check_trainable(child, target)
    before, after = open_folder(child), open_folder(trained)
    if {name: info.shape for name, info in before.tensors.items()} != {n: i.shape for n, i in after.tensors.items()}:
        raise CheckpointError(f"{trained}: its tensors aren't those of {child}", "name the child that was trained")
    earlier = read_record(child)
    changed = set(_changed(before, after)) | set((earlier or {}).get("trained", ()))
    record = {
        "version": 1,
        "how": how,
        "parent": (read_manifest(child) or {}).get("parent"),
        "child": (read_manifest(child) or {}).get("build"),
        "trained": [name for name in before.tensors if name in changed],
        "before": earlier and {k: v for k, v in earlier.items() if k not in ("trained", "history")},
    }
    card = model_card(
        target.name,
        Blueprint.load(child / BLUEPRINT),
        version("ffn-fusion"),
        read_licence(child),
        repairs=read_repairs(child),
        distillation=record,
        form=form_of(before.spec),
    )
    return write_distilled(before, after, record, target, model_card=card)


def check_trainable(child: Path, target: Path) -> None:
    """Check before a training what ``write_trained`` would refuse after it; see there for the errors."""
    check_target(target, child)
    Blueprint.load(child / BLUEPRINT)
    if read_history(child):
        raise BlueprintError(
            f"{child}: was rewritten for engines, its blocks aren't those of its blueprint",
            "train the child that it was made of, then rewrite the result",
        )


def _changed(before: Checkpoint, after: Checkpoint) -> list[str]:
    """Return the names of tensors that differ in the child's dtype."""
    return [
        name
        for name, info in before.tensors.items()
        if not torch.equal(before.read(name), after.read(name).to(torch_dtype(info.dtype)))
    ]
