"""A checkpoint folder, opened lazily and with suspicion: config, tensor table, and bytes only when asked for.

Untrusted input: safetensors only, no code of the checkpoint's own, no file outside the folder, every tensor that
the family's facts name with the right shape, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.computed import ModelTensor, rows_of, sources_of, stored_shape, taken
from ffn_fusion.checkpoint.safetensors_file import TensorInfo, read_bytes, read_header
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.checkpoint.stored import Scaling, read_stored
from ffn_fusion.checkpoint.text_model import text_config, text_tensors
from ffn_fusion.checkpoint.weight_files import ADAPTER, INDEX, SINGLE, nothing_readable, shards
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import ModelSpec, family_of, names_of, nemotron_nas, per_block, read_spec
from ffn_fusion.families.layout import ignorable, model_tensors
from ffn_fusion.families.marked import of_llm_drop
from ffn_fusion.families.quantised import scale_block
from ffn_fusion.families.rewriting import Piece

if TYPE_CHECKING:
    import torch

CONFIG_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""What config.json calls a dtype -> what safetensors calls it."""
_FLOATS = tuple(CONFIG_DTYPES.values())
_JSON_LIMIT = 256 << 20
_NO_HEAD = "if the embedding is the head too, config.json has to say so: tie_word_embeddings: true"


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. ``tensors`` holds exactly what the family names; ``fingerprint`` identifies config and layout.

    ``notes`` say what is read otherwise than it's stored. Where there are any, no other program reads the folder right.
    Reading a tensor returns a fresh torch tensor; nothing is cached and nothing else is read.
    """

    folder: Path
    spec: ModelSpec
    tensors: Mapping[str, ModelTensor] = field(repr=False)
    fingerprint: str
    name: str
    revision: str | None = None
    trust_links: bool = False
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The dtype of the embedding, which stands for the checkpoint's."""
        return next(iter(self.tensors.values())).dtype

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(math.prod(info.shape) for info in self.tensors.values())

    def own_folder(self, reader: str) -> Path:
        """The folder, for another program (``reader``) to read by itself.

        Raises:
            CheckpointError: that program wouldn't read the model that this is.
        """
        if self.notes:
            raise CheckpointError(
                f"{self.name}: {reader} doesn't read the folder as ffn-fusion does: {self.notes[0]}",
                "save it anew with transformers' save_pretrained, and take that"
                if family_of(self.spec).form
                else "write it anew and take that: ffn-fusion export MODEL --to nemotron-nas -o FOLDER",
            )
        return self.folder

    @property
    def files(self) -> set[Path]:
        """The files that hold the weights."""
        return {info.file for name in self.tensors for info in self.stored(name)}

    @property
    def files_state(self) -> str:
        """Names, sizes and ages of the weight files: whether they changed since, without reading them."""
        stats = ((path.name, path.stat()) for path in sorted(self.files))
        return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)

    def blueprint(self) -> Blueprint:
        """The blueprint of a child that is this model unchanged: where edits begin."""
        return Blueprint.identity(self.spec.parent(self.name, self.revision))

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start..stop-1`` of a tensor (elements, if it has one dimension)."""
        return rows_of(self.tensors[name], start, stop)

    def stored(self, name: str) -> tuple[TensorInfo, ...]:
        """The stored tensors that one of the model's is made of."""
        return sources_of(self.tensors[name])


def read_rows(info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    """Rows ``start..stop-1`` of a stored tensor."""
    import torch

    raw = torch.empty((stop - start) * info.row_bytes, dtype=torch.uint8)
    read_bytes(info, start * info.row_bytes, raw.numpy().data)
    return raw.view(torch_dtype(info.dtype)).view(stop - start, *info.shape[1:])


def torch_dtype(name: str) -> torch.dtype:
    """``"BF16"`` -> ``torch.bfloat16``."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }[name]


def read_config(folder: Path, trust_links: bool = False) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
        CheckpointError: missing, unreadable or not a JSON object.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", "give a checkpoint folder, a GGUF file or a hub id")
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER).is_file():
            raise _nothing_readable(folder, trust_links)
        raise CheckpointError(f"{folder}: no config.json", "give the folder of a Hugging Face checkpoint")
    return _json(folder, "config.json", trust_links)


def read_folder_spec(folder: Path, name: str | None = None, trust_links: bool = False) -> ModelSpec:
    """What config.json alone says of a model; ``name`` is what a message calls it.

    Raises:
        CheckpointError: no usable config. FamilyError: a family that can't be fused, or code of its own is needed.
    """
    return _spec(read_config(folder, trust_links), name or str(folder))


def _spec(config: Mapping[str, Any], name: str) -> ModelSpec:
    ours = config.get("model_type") in (nemotron_nas.MODEL_TYPE, per_block.MODEL_TYPE) or of_llm_drop(config)
    if "auto_map" in config and not ours:
        raise FamilyError(
            f"{name}: config.json asks for code of its own (auto_map), which is never run",
            "if transformers' own class for its model_type computes the model, remove auto_map from config.json",
        )
    return read_spec(config)


def open_folder(
    folder: Path, name: str | None = None, revision: str | None = None, opening: OpenSettings | None = None
) -> Checkpoint:
    """Open a checkpoint folder: reads config and the headers of the weights, not the weights.

    Args:
        name: what to call the model (default: the folder's path).
        revision: commit of a hub model.
        opening: what would be refused otherwise.

    Raises:
        CheckpointError: damaged, incomplete or unsafe. FamilyError: a family that can't be fused.
    """
    opening = opening or OpenSettings()
    trust_links = opening.trust_links
    config = read_config(folder, trust_links)
    wrapper = config.get("model_type")
    if opening.text_model:
        with _named(folder):
            config = text_config(config)
    spec = _spec(config, name or str(folder))
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    found: dict[str, TensorInfo] = {}
    for path in _weight_files(folder, trust_links):
        header, raw = read_header(path)
        digest.update(raw)
        for tensor in header:
            if tensor in found:
                raise CheckpointError(f"{path}: tensor {tensor} stands in {found[tensor].file.name} too", "remove one")
        found |= header
    _check_index(folder, found, trust_links)
    with _named(folder):
        dtype = CONFIG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "BF16")
        inside = text_tensors(found, names_of(spec).head) if opening.text_model else found
        stored = read_stored(spec, inside, Scaling(dtype, scale_block(config)), renumber=opening.renumber)
        stored = stored.noted(f"the text model of a {wrapper} model") if opening.text_model else stored
    tensors, called = _expected(folder, stored.spec, stored.tensors), name or str(folder)
    return Checkpoint(folder, stored.spec, tensors, digest.hexdigest(), called, revision, trust_links, stored.notes)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Put the folder in front of what a person is told."""
    try:
        yield
    except (CheckpointError, FamilyError) as error:
        raise type(error)(f"{folder}: {error.message}", error.hint) from error


def _weight_files(folder: Path, trust_links: bool) -> list[Path]:
    if (folder / INDEX).is_file():
        weight_map = _json(folder, INDEX, trust_links).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX}: no weight_map", "get the index again")
        names = sorted(set(map(str, weight_map.values())))
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    elif not (names := shards(path.name for path in folder.iterdir())):
        raise _nothing_readable(folder, trust_links)
    return [inside(folder, name, trust_links) for name in names]


def _nothing_readable(folder: Path, trust_links: bool) -> CheckpointError:
    adapter = _json(folder, ADAPTER, trust_links) if (folder / ADAPTER).is_file() else {}
    base = adapter.get("base_model_name_or_path")
    return nothing_readable(str(folder), {path.name for path in folder.iterdir()}, str(base) if base else None)


def inside(folder: Path, name: str, trust_links: bool = False) -> Path:
    """``folder/name``, refused if it leads out of the folder by name or by link (a hub cache's own links are fine).

    Args:
        trust_links: links may lead anywhere.

    Raises:
        CheckpointError: it does, or there is no such file.
    """
    path = folder / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(
            f"{folder}: the index names {name!r}, a path and not a file of this folder", "fix the index"
        )
    try:
        root, real = folder.resolve(), path.resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, links in a ring
        raise CheckpointError(f"{folder}: {name!r} can't be a file", "get the checkpoint again") from error
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not trust_links and not any(real.is_relative_to(place) for place in allowed):
        whole = real.with_name("config.json").is_file() and real.name == name
        raise CheckpointError(
            f"{path}: leads out of its folder, to {real}",
            (f"give that folder itself, {real.parent}, or " if whole else "")
            + "add --trust-links if the folder's links are yours",
        )
    if not found:
        raise CheckpointError(f"{folder}: file {name!r} is missing", "get the checkpoint again, whole")
    return path


def _check_index(folder: Path, found: Mapping[str, TensorInfo], trust_links: bool) -> None:
    if not (folder / INDEX).is_file():
        return
    for name, file in _json(folder, INDEX, trust_links)["weight_map"].items():
        if name not in found or found[name].file.name != file:
            raise CheckpointError(f"{folder / INDEX}: tensor {name} isn't in {file}", "get the checkpoint again, whole")


def _expected(folder: Path, spec: ModelSpec, found: Mapping[str, ModelTensor]) -> dict[str, ModelTensor]:
    """The tensors that the family names, in order; anything missing, extra or of another shape is refused."""
    result: dict[str, ModelTensor] = {}
    used = set()
    whole = "the weights don't fit config.json: get both from the same place"
    for wanted, size in model_tensors(spec).items():
        piece = spec.pieces.get(wanted, Piece(wanted))
        if piece.renames and piece.name not in found:  # stored under the name that the model has it by
            piece = Piece(wanted)
        name, shape, info = piece.name, stored_shape(piece, size), found.get(piece.name)
        if info is None:
            untied = name == names_of(spec).head
            raise CheckpointError(f"{folder}: tensor {name} is missing", _NO_HEAD if untied else whole)
        if info.shape != shape:
            raise CheckpointError(f"{folder}: tensor {name} is {list(info.shape)}, not {list(shape)}", whole)
        if info.dtype not in _FLOATS:
            raise CheckpointError(f"{folder}: tensor {name} is {info.dtype}", f"known are {', '.join(_FLOATS)}")
        result[wanted] = taken(piece, info)
        used.add(name)
    extra = [name for name in found if name not in used | spec.unread and not ignorable(name)]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(f"{folder}: tensor {sorted(extra)[0]}{more} isn't part of a {spec.family} model", whole)
    return result


def _json(folder: Path, name: str, trust_links: bool = False) -> dict[str, Any]:
    path = inside(folder, name, trust_links)
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes of JSON", "this can't be right; get it again")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "check that it can be read") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON", "get the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", "get the file again")
    return value
