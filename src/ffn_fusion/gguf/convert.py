"""GGUF -> a safetensors folder in a cache, streamed in rows: whole or not at all, reused the next time.

Quantised values become float32, exactly the values that an engine computes with.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ffn_fusion.checkpoint.computed import stored_tensors
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.safetensors_file import ITEM_SIZES
from ffn_fusion.checkpoint.shards import OutputTensor
from ffn_fusion.checkpoint.staging import MODEL_CARD
from ffn_fusion.checkpoint.write import json_file, write_checkpoint
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import ModelSpec, read_spec
from ffn_fusion.families.llama_shaped import NAMES
from ffn_fusion.gguf.architectures import ARCHITECTURES
from ffn_fusion.gguf.file import GgufFile, GgufTensor, read_gguf
from ffn_fusion.gguf.metadata import output_dtype, read_config
from ffn_fusion.gguf.names import gguf_name, is_rotary
from ffn_fusion.gguf.openelm import as_qwen3
from ffn_fusion.gguf.rotary import FACTORS, reorder_heads
from ffn_fusion.gguf.tokenizer import tokenizer_files
from ffn_fusion.gguf.values import FLOATS, values_of

CONVERTER = 3
"""Raise it whenever a conversion would come out different: cached ones are then left alone and made anew."""

_PIECE_BYTES = 8 << 20  # of float32


def read_gguf_spec(path: Path) -> tuple[ModelSpec, str, int, str]:
    """What the model in a GGUF file is made of, by its header: spec, dtype and bytes once converted, a note.

    Raises:
        CheckpointError: damaged or incomplete. FamilyError: a model that isn't supported.
    """
    gguf, _, spec = _read_model(path)
    sources = _sources(gguf, spec)
    nbytes = sum(math.prod(t.shape) * ITEM_SIZES[output_dtype(t.kind_name)] for t in sources.values())
    kinds: Counter[str] = Counter()
    for tensor in sources.values():
        kinds[tensor.kind_name] += tensor.nbytes
    dtype = output_dtype(sources[NAMES.embedding].kind_name)
    return spec, dtype, nbytes, f"GGUF, mostly {kinds.most_common(1)[0][0]}; read as {dtype}"


def open_gguf(
    path: Path, cache: Path, on_progress: Callable[[str, float], None] = lambda what, done: None
) -> Checkpoint:
    """Convert a GGUF file to a safetensors folder under ``cache``, or find it there, and open it.

    Raises:
        CheckpointError: damaged, incomplete, or a tokenizer that isn't known.
        FamilyError: a model that isn't supported. MissingExtraError: the gguf package is needed.
        OutputError: the cache can't be written.
    """
    key = _key(path)
    target = cache / "gguf" / f"{path.stem}-{key[:16]}"
    if target.is_dir():
        try:
            return open_folder(target, name=str(path))
        except CheckpointError:  # somebody damaged the cache: make it anew
            shutil.rmtree(target, ignore_errors=True)
    _convert(path, target, key, on_progress)
    try:
        return open_folder(target, name=str(path))
    except Exception:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _key(path: Path) -> str:
    try:
        about = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "check that the file exists and can be read") from error
    identity = f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\0{CONVERTER}"
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()


def _convert(path: Path, target: Path, key: str, on_progress: Callable[[str, float], None]) -> None:
    gguf, config, spec = _read_model(path)
    sources = _sources(gguf, spec)
    form = ARCHITECTURES[gguf.architecture]
    outputs = [
        _output(
            name,
            tensor,
            spec.head_dim if form.interleaved and is_rotary(name) else None,
            form.norms_plus if name.endswith("norm.weight") else 0.0,
        )
        for name, tensor in sources.items()
    ]
    total = sum(output.nbytes for output in outputs)
    extras = tokenizer_files(gguf)
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress(f"converting {path.name}", done / total)

    def refuse(tensor: OutputTensor) -> CheckpointError:
        return CheckpointError(
            f"{path}: tensor {sources[tensor.name].name} holds NaN or infinity", "get the file again"
        )

    write_checkpoint(
        outputs,
        [json_file("config.json", config), *extras.items(), *_model_card(gguf)],
        {"build": key, "kind": "converted GGUF", "source": str(path), "converter": CONVERTER},
        target,
        on_bytes=count,
        on_nonfinite=refuse,
    )


def _read_model(path: Path) -> tuple[GgufFile, dict[str, Any], ModelSpec]:
    """The file with a family's own tensors, and the config.json and the sizes of the model in it."""
    gguf = read_gguf(path)
    if gguf.architecture == "openelm":
        gguf = as_qwen3(gguf)
    config = read_config(gguf)
    return gguf, config, read_spec(config)


def _model_card(gguf: GgufFile) -> Iterator[tuple[str, bytes]]:
    """The licence that the file names, for the child's card to carry on."""
    licence = gguf.metadata.get("general.license")
    if isinstance(licence, str) and licence:
        yield MODEL_CARD, f"---\nlicense: {json.dumps(licence)}\n---\n".encode()


def _sources(gguf: GgufFile, spec: ModelSpec) -> dict[str, GgufTensor]:
    """The family's tensor names -> the file's tensors; any that is missing, extra or of another shape is refused."""
    again = "the file is incomplete or holds another model: get it again, or start from the safetensors"
    expected = stored_tensors(spec)
    theirs = {gguf_name(name): name for name in expected}
    vectors = ("F32",) if ARCHITECTURES[gguf.architecture].norms_plus else FLOATS
    for tensor in gguf.tensors.values():
        if tensor.name in FACTORS:
            continue
        if tensor.name not in theirs:
            raise CheckpointError(f"{gguf.path}: tensor {tensor.name} isn't part of the model", again)
        shape = expected[theirs[tensor.name]]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{gguf.path}: tensor {tensor.name} is {list(tensor.shape)}, not {list(shape)}", again
            )
        if len(tensor.shape) == 1 and tensor.kind_name not in vectors:
            raise CheckpointError(f"{gguf.path}: tensor {tensor.name} is a {tensor.kind_name} vector", again)
    missing = [name for theirs_, name in theirs.items() if theirs_ not in gguf.tensors]
    if missing:
        raise CheckpointError(f"{gguf.path}: there is no tensor for {missing[0]}", again)
    return {name: gguf.tensors[gguf_name(name)] for name in expected}


def _output(name: str, tensor: GgufTensor, head_dim: int | None, plus: float) -> OutputTensor:
    return OutputTensor(name, output_dtype(tensor.kind_name), tensor.shape, lambda: _pieces(tensor, head_dim, plus))


def _pieces(tensor: GgufTensor, head_dim: int | None, plus: float) -> Iterator[memoryview]:
    """The tensor's values less ``plus`` as bytes, some whole rows (for Q and K: whole heads) at a time."""
    rows = tensor.shape[0]
    step = max(1, _PIECE_BYTES // (4 * math.prod(tensor.shape[1:])))
    if head_dim is not None:
        step = max(1, step // head_dim) * head_dim
    for start in range(0, rows, step):
        raw = tensor.rows(start, min(start + step, rows))
        if head_dim is not None:
            raw = reorder_heads(raw, head_dim, "half-split")
        values = values_of(tensor, raw)
        yield memoryview((values.view("<f4") - np.float32(plus) if plus else values).data).cast("B")
