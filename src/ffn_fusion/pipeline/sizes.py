"""The sizes of a model that a person names: a checkpoint, a config.json alone, or an unbuilt blueprint. No torch."""

from __future__ import annotations

from pathlib import Path

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import read_folder_spec
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.sources import summarise


def model_sizes(ref: str, *, revision: str | None = None) -> ModelSpec:
    """Return the sizes of a model from headers and configs alone.

    Args:
        ref: a checkpoint folder, GGUF file or hub id; a config.json without weights; or a blueprint, whose parent is
            opened.

    Raises:
        CheckpointError, FamilyError, UsageError: as :func:`ffn_fusion.summarise`.
        BlueprintError: a file that isn't a blueprint, or one of a model with other blocks than its parent has now.
    """
    path = Path(ref).expanduser()
    if path.name == "config.json" and path.is_file():
        return read_folder_spec(path.parent)
    if path.suffix != ".json" or not path.is_file():
        return summarise(ref, revision=revision).spec
    blueprint = Blueprint.load(path)
    parent = summarise(blueprint.parent.name, revision=blueprint.parent.revision).spec
    if parent.parent("").blocks != blueprint.parent.blocks:
        raise BlueprintError(
            f"{path}: of {blueprint.parent.name} with other blocks than it has now", "plan again for this model"
        )
    return child_spec(parent, blueprint, WIDTH_MULTIPLE)
