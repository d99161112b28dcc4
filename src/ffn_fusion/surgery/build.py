"""The streaming builder: blueprint + parent checkpoint -> child checkpoint.

Holds a few megabytes of rows at a time, whatever the model's size; copied tensors never become torch tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint import staging
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.safetensors_file import CHUNK_BYTES, chunks
from ffn_fusion.checkpoint.shards import MAX_SHARD_BYTES, OutputTensor, finite, plan_shards, write_shards
from ffn_fusion.checkpoint.sidecars import sidecar_files
from ffn_fusion.errors import BlueprintError, CheckpointError
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.child_config import MODELING_FILES, child_config
from ffn_fusion.surgery.repairs import RECORD, Repairs

BLUEPRINT = "blueprint.json"
_MARGIN = 64 << 20  # tokenizer, config and the file system's own


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
    staging.check_target(target, parent.folder)
    tensors = output_tensors(child)
    staging.check_space(target, sum(tensor.nbytes for tensor in tensors) + _MARGIN)

    def refuse(name: str) -> None:
        raise CheckpointError(f"{_guilty(child, name)} holds NaN or infinity", "get the weights again, or mend them")

    with staging.staged(target, _staging_key(child, max_shard_bytes)) as stage:
        write_shards(stage, plan_shards(tensors, max_shard_bytes), on_bytes, refuse)
        for name, content in sidecar_files(parent.folder):
            stage.write(name, content)
        for name, path in MODELING_FILES.items():
            stage.write(name, path.read_bytes())
        config = child_config(child.spec, width_multiple)
        stage.write("config.json", (json.dumps(config, indent=2) + "\n").encode())
        stage.write(BLUEPRINT, blueprint.to_json().encode())
        if repairs is not None:
            stage.write(RECORD, (json.dumps(repairs.record, indent=1) + "\n").encode())
        if model_card:
            stage.write(staging.MODEL_CARD, model_card.encode())
        stage.commit(
            {
                "made_by": f"ffn-fusion {version('ffn-fusion')}",
                "build": build_id(child, max_shard_bytes),
                "parent": {
                    "name": parent.name,
                    "revision": parent.revision,
                    "fingerprint": parent.fingerprint,
                },
            }
        )
    return target


def check_blueprint(parent: Checkpoint, blueprint: Blueprint) -> None:
    """Raises: BlueprintError: the blueprint is of a model with other blocks, or leaves none."""
    if blueprint.parent.blocks != parent.spec.parent("").blocks:
        raise BlueprintError(
            f"the blueprint is of {blueprint.parent.name}, whose blocks differ from those of {parent.name}",
            "plan again for this model",
        )
    if not blueprint.kept_blocks:
        raise BlueprintError("the blueprint leaves no block at all", "keep at least one attention or FFN")


def output_tensors(child: Child) -> list[OutputTensor]:
    """The child's tensors as streams of bytes; those copied from the parent are its bytes."""
    return [OutputTensor(t.name, t.dtype, t.shape, _pieces(child, t.name)) for t in child.tensors.values()]


def child_bytes(child: Child) -> int:
    return sum(tensor.nbytes for tensor in output_tensors(child))


def _pieces(child: Child, name: str) -> Callable[[], Iterator[memoryview]]:
    tensor = child.tensors[name]
    if tensor.join == "copy":
        return lambda: chunks(child.parent.tensors[tensor.sources[0]])

    def computed() -> Iterator[memoryview]:
        count = tensor.shape[0]
        row_bytes = max(1, OutputTensor(name, tensor.dtype, tensor.shape, lambda: iter(())).nbytes // count)
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, count, step):
            rows = child.rows(name, start, min(start + step, count))
            yield rows.contiguous().view(torch.uint8).numpy().data.cast("B")

    return computed


def _guilty(child: Child, name: str) -> str:
    """Which tensor of the parent brought in what isn't finite."""
    tensor = child.tensors[name]
    for source in (*tensor.sources, *tensor.scales):
        info = child.parent.tensors[source]
        if any(not finite(piece, info.dtype) for piece in chunks(info)):
            return f"{info.file}: tensor {source}"
    return f"tensor {name} of the child, too large for {tensor.dtype} after folding the norm: it"


def build_id(child: Child, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """What is being built: parent, blueprint and options; the same on every machine. Stands in the manifest."""
    digest = hashlib.sha256(child.parent.fingerprint.encode())
    digest.update(child.blueprint.to_json().encode())
    digest.update(f"{child.width_multiple} {max_shard_bytes} {version('ffn-fusion')}".encode())
    if child.repairs is not None:
        digest.update(child.repairs.digest.encode())
    return digest.hexdigest()


def _staging_key(child: Child, max_shard_bytes: int) -> str:
    """The build and the state of the parent's files, so that an interrupted build never mixes two of them."""
    digest = hashlib.sha256(build_id(child, max_shard_bytes).encode())
    digest.update(files_state(child.parent).encode())
    return digest.hexdigest()


def files_state(parent: Checkpoint) -> str:
    """Names, sizes and ages of a checkpoint's weight files: whether they changed since, without reading them."""
    stats = ((path.name, path.stat()) for path in sorted({info.file for info in parent.tensors.values()}))
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
