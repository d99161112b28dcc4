"""A checkpoint as one GGUF file that llama.cpp runs: streamed, whole or not at all.

The gguf package writes the header (metadata and the table of tensors), this file the tensors after it, some rows at a
time, so that a tensor larger than memory goes through.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffn_fusion.blueprint import PARTS
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.safetensors_file import fsync_folder
from ffn_fusion.checkpoint.sidecars import read_licence
from ffn_fusion.checkpoint.staging import check_space, check_target, exclusive
from ffn_fusion.errors import OutputError, UsageError
from ffn_fusion.gguf.file import gguf_package
from ffn_fusion.gguf.metadata import architecture, hyperparameters
from ffn_fusion.gguf.quantize import QUANTIZED, find_quantizer, quantized_bytes, run_quantizer
from ffn_fusion.gguf.tensors import KINDS, GgufOutput, Kind, gguf_tensors
from ffn_fusion.gguf.vocabulary import Vocabulary, read_vocabulary

DTYPES = (*(kind.lower() for kind in KINDS), *QUANTIZED)
"""How weights can be stored: the first ones are written here, the others by llama.cpp's own llama-quantize."""

_ALIGNMENT = 32  # of tensors, as the format says where a file doesn't
_HEADER_ROOM = 64 << 20
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.cpp's enum llama_ftype
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GgufPlan:
    """What will be written. ``quantizer`` is the program that quantises what's written first; ``nbytes`` of weights
    (about, where it quantises).
    """

    checkpoint: Checkpoint
    dtype: str
    architecture: str
    vocabulary: Vocabulary
    tensors: list[GgufOutput]
    quantizer: Path | None

    @property
    def nbytes(self) -> int:
        written = sum(tensor.nbytes for tensor in self.tensors)
        return quantized_bytes(self.tensors, self.dtype) if self.quantizer else written

    @property
    def filled(self) -> tuple[int, int]:
        """The number of absent sub-blocks in whose place zeros are written, and the bytes of those zeros."""
        filled = [tensor for tensor in self.tensors if tensor.fills]
        absent = sum(block.part(part) is None for block in self.checkpoint.spec.blocks for part in PARTS)
        return absent if filled else 0, sum(tensor.nbytes for tensor in filled)


def plan_file(
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    pre_tokenizer: str | None = None,
    quantizer: Path | None = None,
) -> GgufPlan:
    """Decide how a checkpoint becomes a GGUF file.

    Args:
        dtype: one of ``DTYPES``; None keeps the checkpoint's.
        pre_tokenizer: llama.cpp's name for how the tokenizer cuts a text, where it isn't found by itself.
        quantizer: llama.cpp's llama-quantize, where it isn't on the PATH; asked for by k-quants only.

    Raises:
        CheckError: llama.cpp has no such rotary scaling.
        CheckpointError: the tokenizer is missing, broken, or of a kind that GGUF can't hold.
        UsageError: no such dtype. MissingExtraError: the gguf package or llama-quantize is needed.
    """
    own: Kind = "F32" if checkpoint.dtype == "F64" else checkpoint.dtype  # type: ignore[assignment]
    wanted = (dtype or own).lower()
    if wanted not in DTYPES:
        raise UsageError(f"no dtype {dtype!r} in GGUF", f"known are {', '.join(DTYPES)}")
    gguf_package("writing GGUF")
    hyperparameters(checkpoint.spec)  # what it refuses is refused now
    program = find_quantizer(quantizer, wanted) if wanted in QUANTIZED else None
    config = checkpoint.spec.config
    return GgufPlan(
        checkpoint=checkpoint,
        dtype=wanted,
        architecture=architecture(checkpoint.spec),
        vocabulary=read_vocabulary(
            checkpoint.folder,
            config,
            checkpoint.spec.vocab_size,
            pre_tokenizer,
            trust_links=checkpoint.trust_links,
        ),
        tensors=gguf_tensors(checkpoint, own if program else _kind(wanted)),
        quantizer=program,
    )


def _kind(dtype: str) -> Kind:
    return next(kind for kind in KINDS if kind.lower() == dtype)


def write_gguf(plan: GgufPlan, target: Path, on_progress: Progress = lambda what, done, total: None) -> Path:
    """Write the file: whole, or not at all.

    Args:
        on_progress: called with what is being done, the bytes done and the bytes in all.

    Raises:
        CheckpointError: a weight is NaN, infinite, or beyond the dtype.
        OutputError: the target exists, lies inside the checkpoint, the disk is too small, llama-quantize failed.
    """
    check_target(target, plan.checkpoint.folder)
    written = sum(tensor.nbytes for tensor in plan.tensors)
    check_space(target, written + (plan.nbytes if plan.quantizer else 0) + _HEADER_ROOM)
    with whole_file(target) as part:
        if plan.quantizer is None:
            _write(plan, part, on_progress)
            return target
        with whole_file(part.with_name(target.name + ".unquantised"), keep=False) as unquantised:
            _write(plan, unquantised, on_progress)
            on_progress(f"quantising to {plan.dtype}", 0, 1)
            run_quantizer(plan.quantizer, unquantised, part, plan.dtype)
            on_progress(f"quantising to {plan.dtype}", 1, 1)
    return target


@contextmanager
def whole_file(target: Path, *, keep: bool = True) -> Iterator[Path]:
    """A file to write beside ``target``; it takes its place once it's whole, and goes after an error.

    Args:
        keep: False removes it in any case.

    Raises:
        OutputError: another process is writing it, or the disk said no.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(part, f"{target}: another process is writing it"):
            try:
                yield part
                if keep:
                    _sync(part)
                    check_target(target, None)
                    part.rename(target)
                    fsync_folder(target.parent)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror or error}", "nothing was left behind; try again") from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(plan: GgufPlan, part: Path, on_progress: Progress) -> None:
    _write_header(plan, part)
    total, done = sum(tensor.nbytes for tensor in plan.tensors), 0
    with part.open("ab") as file:
        file.write(_padding(file.tell()))
        for tensor in plan.tensors:
            count = 0
            for piece in tensor.pieces():
                file.write(piece)
                count += len(piece)
                on_progress("writing GGUF", done + count, total)
            assert count == tensor.nbytes, (tensor.name, count, tensor.nbytes)
            file.write(_padding(count))
            done += count


def _padding(length: int) -> bytes:
    return bytes(-length % _ALIGNMENT)


def _write_header(plan: GgufPlan, part: Path) -> None:
    """Metadata and the table of tensors."""
    gguf = gguf_package("writing GGUF")
    writer = gguf.GGUFWriter(None, plan.architecture)
    _add_model(writer, plan)
    _add_vocabulary(writer, plan.vocabulary)
    for tensor in plan.tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, _float32(), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _float32() -> Any:
    import numpy as np

    return np.dtype(np.float32)  # of the values; how they are stored is the raw dtype


def _add_model(writer: Any, plan: GgufPlan) -> None:
    kinds = {tensor.kind for tensor in plan.tensors if len(tensor.shape) > 1}
    kind = next(iter(kinds)) if len(kinds) == 1 else max(kinds, key=list(KINDS).index)
    writer.add_type("model")
    writer.add_name(Path(plan.checkpoint.name).name.removesuffix(".gguf"))
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(2)
    if licence := read_licence(plan.checkpoint.folder):
        writer.add_license(licence)
    for key, value in hyperparameters(plan.checkpoint.spec).items():
        name = f"{plan.architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for role, token in vocabulary.special_ids.items():
        getattr(writer, f"add_{role}_token_id")(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.model == "llama":
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
