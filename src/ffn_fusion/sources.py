"""The one way in: a folder, a GGUF file or a hub id -> a checkpoint, or a summary without its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ffn_fusion.checkpoint import hub
from ffn_fusion.checkpoint.reader import CONFIG_DTYPES, Checkpoint, open_folder
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.errors import CheckpointError, UsageError
from ffn_fusion.families import ModelSpec

CACHE_VARIABLE = "FFN_FUSION_CACHE"


@dataclass(frozen=True)
class ModelSummary:
    """What can be said of a model without its weights.

    ``dtype`` (F32, F16, BF16) and ``nbytes`` are those of the opened checkpoint; ``nbytes`` is None where the
    hub couldn't be asked. ``note`` says where the weights are kept in another form.
    """

    name: str
    revision: str | None
    spec: ModelSpec = field(repr=False)
    dtype: str
    nbytes: int | None
    note: str = ""


def default_cache() -> Path:
    """Where conversions are kept: $FFN_FUSION_CACHE, else ffn-fusion under $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ffn-fusion"


def open_model(
    ref: str | Path,
    *,
    revision: str | None = None,
    opening: OpenSettings | None = None,
    cache: Path | None = None,
    on_progress: Callable[[str, float], None] = lambda what, done: None,
) -> Checkpoint:
    """Open a checkpoint folder, a GGUF file or a hub id (``org/name``).

    A GGUF file is converted once into ``cache`` (default: :func:`default_cache`). Downloads go to
    huggingface_hub's own cache.

    Args:
        revision: branch, tag or commit of a hub model.
        opening: what would be refused otherwise in a folder.
        on_progress: called with what is being done and the fraction done, while downloading or converting.

    Raises:
        CheckpointError: nothing there, no access, damaged, incomplete or unsafe. FamilyError: can't be fused.
        UsageError: a revision of something that isn't on the hub. MissingExtraError: GGUF needs a package.
        OutputError: a cache can't be written.
    """
    path = _local(ref, revision)
    if path is None:
        model = hub.fetch(str(ref), revision, on_progress)
        return open_folder(model.folder, model.repo, model.revision, opening)
    if path.is_dir():
        return open_folder(path, opening=opening)
    from ffn_fusion.gguf.convert import open_gguf  # with numpy: only for those who need it

    return open_gguf(path, cache or default_cache(), on_progress)


def summarise(ref: str | Path, *, revision: str | None = None, opening: OpenSettings | None = None) -> ModelSummary:
    """What a model is made of. Reads headers; of a hub model it downloads config.json alone; needs no torch.

    Raises:
        CheckpointError, FamilyError, UsageError: as :func:`open_model`.
    """
    path = _local(ref, revision)
    if path is None:
        model = hub.find(str(ref), revision)
        dtype = model.spec.config.get("dtype") or model.spec.config.get("torch_dtype")
        return ModelSummary(
            model.repo, model.revision, model.spec, CONFIG_DTYPES.get(str(dtype), "F32"), model.weight_bytes
        )
    if path.is_dir():
        checkpoint = open_folder(path, opening=opening)
        note = "; ".join(checkpoint.notes)
        return ModelSummary(checkpoint.name, None, checkpoint.spec, checkpoint.dtype, checkpoint.nbytes, note)
    from ffn_fusion.gguf.convert import read_gguf_spec

    spec, dtype, nbytes, note = read_gguf_spec(path)
    return ModelSummary(str(path), None, spec, dtype, nbytes, note)


def _local(ref: str | Path, revision: str | None) -> Path | None:
    """The folder or GGUF file that is meant; None for a hub id."""
    path = Path(ref)
    try:
        path = path.expanduser()
        exists = path.exists()
    except RuntimeError:  # ~nobody
        exists = False
    except OSError as error:
        raise CheckpointError(f"{ref}: {error.strerror}", "check the path") from error
    if not exists:
        if isinstance(ref, str) and hub.is_hub_id(ref):
            return None
        raise CheckpointError(
            f"{ref}: no such folder or file", "give a checkpoint folder, a GGUF file or a hub id (org/name)"
        )
    if revision is not None:
        raise UsageError(f"revision {revision!r}, but {ref} is on this disk", "revisions are for hub ids; leave it out")
    if path.is_file():
        _check_gguf(path)
    return path


def _check_gguf(path: Path) -> None:
    from ffn_fusion.gguf.file import is_gguf

    if is_gguf(path):
        return
    if path.suffix == ".gguf":
        raise CheckpointError(f"{path}: not a GGUF file", "get the file again; this one is damaged")
    raise CheckpointError(f"{path}: a file, but not GGUF", "give the folder of the checkpoint, or a GGUF file")
