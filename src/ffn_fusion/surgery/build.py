"""The streaming builder: blueprint + parent checkpoint -> child checkpoint.

Holds a few megabytes of rows at a time, whatever the model's size; copied tensors never become torch tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.safetensors_file import TensorInfo
from ffn_fusion.checkpoint.shards import OutputTensor
from ffn_fusion.checkpoint.sidecars import child_files
from ffn_fusion.checkpoint.staging import MAX_SHARD_BYTES, MODEL_CARD
from ffn_fusion.checkpoint.write import json_file, output_tensors, write_checkpoint
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import require
from ffn_fusion.families.block_lists import differing_list
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.child_config import child_config, form_of, modeling_files
from ffn_fusion.surgery.repairs import RECORD, Repairs

BLUEPRINT = "blueprint.json"


def build(
    parent: Checkpoint,
    blueprint: Blueprint,
    target: Path,
    *,
    width_multiple: int = WIDTH_MULTIPLE,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    repairs: Repairs | None = None,
    model_card: str = "",
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write the child to ``target``: whole, or not at all. A killed build resumes at the last finished shard.

    Args:
        width_multiple: FFN widths are zero-padded to a multiple of this. Below 256 the child keeps exact widths,
            but only transformers and vLLM load it.
        repairs: weights that repair solved anew.
        model_card: text of README.md.
        on_bytes: called with every count of bytes written.

    Raises:
        BlueprintError: the blueprint is of another model.
        CheckpointError: a weight is NaN or infinite.
        OutputError: the target exists, overlaps the input, or the disk is too small.
    """
    check_blueprint(parent, blueprint)
    child = Child(parent, blueprint, width_multiple, repairs)
    about = {"name": parent.name, "revision": parent.revision, "fingerprint": parent.fingerprint}
    return write_checkpoint(
        child_tensors(child),
        _files(child, model_card),
        {"build": build_id(child, max_shard_bytes), "parent": about},
        target,
        parent=parent.folder,
        state=parent.files_state,
        max_shard_bytes=max_shard_bytes,
        on_bytes=on_bytes,
    )


def _files(child: Child, model_card: str) -> Iterator[tuple[str, bytes]]:
    yield from child_files(child.parent)
    yield from modeling_files(form_of(child.spec))
    yield json_file("config.json", child_config(child.spec, child.width_multiple))
    yield BLUEPRINT, child.blueprint.to_json().encode()
    if child.repairs is not None:
        yield json_file(RECORD, child.repairs.record, indent=1)
    if model_card:
        yield MODEL_CARD, model_card.encode()


def check_blueprint(parent: Checkpoint, blueprint: Blueprint) -> None:
    """Refuse what can't be built.

    Raises:
        BlueprintError: the blueprint is of a model with other blocks, or leaves none.
        FamilyError: the parent's family doesn't take one of the blueprint's operations, or no form holds the child.
    """
    if blueprint.parent.blocks != parent.spec.parent("").blocks:
        raise BlueprintError(
            f"the blueprint is of {blueprint.parent.name}, whose blocks differ from those of {parent.name}",
            "plan again for this model",
        )
    if not blueprint.kept_blocks:
        raise BlueprintError("the blueprint leaves no block at all", "keep at least one attention or FFN")
    for operation in sorted(blueprint.operations):
        require(parent.spec, operation)
    child_spec(parent.spec, blueprint, 1)
    for block in blueprint.kept_blocks:
        if name := differing_list(parent.spec.config, block.attention.sources):
            raise BlueprintError(
                f"blocks {format_blocks(block.attention.sources)} can't be one block: config.json has different {name} "
                "for their attentions",
                "end the run where they change",
            )


def child_tensors(child: Child) -> list[OutputTensor]:
    """The child's tensors as streams of bytes; those copied from the parent are its bytes."""

    def sources(name: str) -> tuple[TensorInfo, ...]:
        return tuple(info for source in child.tensors[name].join.reads for info in child.parent.stored(source))

    def is_copy(name: str) -> bool:
        join = child.tensors[name].join
        return join.copied and isinstance(child.parent.tensors[join.sources[0]], TensorInfo)

    return output_tensors(child, sources, is_copy)


def child_bytes(child: Child) -> int:
    """Bytes of the child's weights."""
    return sum(tensor.nbytes for tensor in child_tensors(child))


def build_id(child: Child, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """What is being built: parent, blueprint and options; the same on every machine. Stands in the manifest."""
    digest = hashlib.sha256(child.parent.fingerprint.encode())
    digest.update(child.blueprint.to_json().encode())
    digest.update(f"{child.width_multiple} {max_shard_bytes} {version('ffn-fusion')}".encode())
    if child.repairs is not None:
        digest.update(child.repairs.digest.encode())
    return digest.hexdigest()
