"""A model on the Hugging Face hub, pinned to a commit: refused early, or only what's needed fetched.

Files go to huggingface_hub's own cache, where other tools find them too. Code (*.py) and pickles
(*.bin, *.pt) are never asked for.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffn_fusion.checkpoint.reader import read_folder_spec
from ffn_fusion.checkpoint.sidecars import LICENCES, SIDECARS
from ffn_fusion.checkpoint.staging import MODEL_CARD, check_space
from ffn_fusion.checkpoint.weight_files import ADAPTER, INDEX, SINGLE, nothing_readable
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import ModelSpec

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_ID_LIMIT = 96  # as the hub
_FILE_SUFFIXES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth")
_BESIDE = (*SIDECARS, *LICENCES, MODEL_CARD)  # the card names the licence
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NEVER = (".py", *_PICKLES)
_ATTEMPTS = 3


@dataclass(frozen=True)
class HubModel:
    """A model at one commit. ``folder`` holds its config.json; ``sizes`` (name -> bytes) is None offline."""

    repo: str
    revision: str
    folder: Path
    spec: ModelSpec
    sizes: Mapping[str, int] | None = field(repr=False)

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the weights, where that's known."""
        sizes = self.sizes or {}
        pattern = "*-of-*.safetensors" if INDEX in sizes else SINGLE
        return sum(n for name, n in sizes.items() if fnmatch.fnmatch(name, pattern) and "/" not in name) or None


def is_hub_id(ref: str) -> bool:
    """Whether this could name a model on the hub (``org/name`` or ``name``) and doesn't look like a file."""
    return (
        _HUB_ID.fullmatch(ref) is not None
        and len(ref) <= _ID_LIMIT
        and ".." not in ref
        and "--" not in ref
        and not ref.lower().endswith(_FILE_SUFFIXES)
    )


def find(repo: str, revision: str | None = None) -> HubModel:
    """Resolve ``revision`` (branch, tag or commit; default: the main branch) to a commit and read its config.

    Nothing but config.json is downloaded. Without a connection, or with HF_HUB_OFFLINE, the cache answers.

    Raises:
        CheckpointError: no such model or revision, no access, nothing cached, or no safetensors in it.
        FamilyError: a family that can't be fused.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with _one_line(repo, revision):
        for _ in range(_ATTEMPTS):
            sizes, commit = None, None
            try:
                info = HfApi().model_info(repo, revision=revision, files_metadata=True)
                sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
                commit = info.sha
                _check_formats(repo, revision, sizes)
            except Exception as error:
                if not _unreachable(error):
                    raise
            # By its branch and not by its commit: so the cache learns which commit the branch stood for.
            config = Path(hf_hub_download(repo, "config.json", revision=revision, local_files_only=sizes is None))
            if commit in (None, config.parent.name):
                return HubModel(repo, config.parent.name, config.parent, read_folder_spec(config.parent, repo), sizes)
    raise CheckpointError(f"{repo}: it's being changed on the hub right now", "name a commit: --revision <commit>")


def fetch(
    repo: str,
    revision: str | None = None,
    on_progress: Callable[[str, float], None] = lambda what, done: None,
) -> HubModel:
    """:func:`find`, then download weights, tokenizer and licence; ``folder`` is then the whole checkpoint.

    Raises:
        CheckpointError, FamilyError: as :func:`find`. OutputError: the weights don't fit on the cache's disk.
    """
    from huggingface_hub import snapshot_download

    model = find(repo, revision)
    if model.sizes is None:
        _check_cached(model)
        return model
    with _one_line(repo, revision):
        names = _wanted(model)
        needed = sum(model.sizes[name] for name in names if not (model.folder / name).exists())
        check_space(model.folder, needed)
        snapshot_download(
            repo,
            revision=model.revision,
            allow_patterns=[glob.escape(name) for name in names],
            tqdm_class=_progress_class(needed, lambda done: on_progress(f"downloading {repo}", done)),
        )
    return model


def _check_formats(repo: str, revision: str | None, sizes: Mapping[str, int]) -> None:
    if INDEX not in sizes and SINGLE not in sizes:
        if any(name.endswith(".gguf") for name in sizes):
            name = min((name for name in sizes if name.endswith(".gguf")), key=lambda name: (sizes[name], name))
            raise CheckpointError(
                f"{repo}: holds GGUF files and no safetensors",
                f"hf download {repo} {name}, then give that file",
            )
        raise nothing_readable(repo, sizes, _base(repo, revision) if ADAPTER in sizes else None)
    if "config.json" not in sizes:
        raise CheckpointError(f"{repo}: no config.json", "give a model in Hugging Face's format")


def _base(repo: str, revision: str | None) -> str | None:
    """What a repository with an adapter says that it's an adapter of."""
    from huggingface_hub import hf_hub_download

    try:
        said = json.loads(Path(hf_hub_download(repo, ADAPTER, revision=revision)).read_bytes())
    except (ValueError, RecursionError):
        return None
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    return str(base) if base else None


def _wanted(model: HubModel) -> list[str]:
    """Names of the files to have: exactly the shards of the index, and what travels with them."""
    from huggingface_hub import hf_hub_download

    assert model.sizes is not None
    weights = [SINGLE]
    if INDEX in model.sizes:
        weights = _shards(Path(hf_hub_download(model.repo, INDEX, revision=model.revision)))
    missing = [name for name in weights if name not in model.sizes]
    if missing:
        raise CheckpointError(
            f"{model.repo}: {INDEX} names {missing[0]!r}, which isn't there", "choose another revision"
        )
    beside = [name for name in model.sizes if any(fnmatch.fnmatchcase(name, pattern) for pattern in _BESIDE)]
    return [*weights, *(name for name in beside if "/" not in name and not name.endswith(_NEVER))]


def _shards(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: no weight_map", "choose another revision") from error
    if any(not name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{index}: names files that aren't safetensors", "choose another revision")
    return names


def _check_cached(model: HubModel) -> None:
    weights = _shards(model.folder / INDEX) if (model.folder / INDEX).is_file() else [SINGLE]
    missing = [name for name in weights if not (model.folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{model.repo}: the hub can't be reached, and {missing[0]!r} isn't in the local cache",
            "run it once with a connection and without HF_HUB_OFFLINE",
        )


def _unreachable(error: BaseException) -> bool:
    """No connection, offline mode, or a hub that is down: what the cache can stand in for."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    # By name: the HTTP library under huggingface_hub is another one from version to version.
    transport = any(kind.__name__ in ("TransportError", "RequestException") for kind in type(error).__mro__)
    return transport or isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError)


@contextmanager
def _one_line(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever huggingface_hub raises becomes one line with what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise _explain(error, repo, revision) from error


def _explain(error: Exception, repo: str, revision: str | None) -> CheckpointError:
    from huggingface_hub import constants, errors

    at = f"{repo} at {revision}" if revision else repo
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return CheckpointError(f"{at}: not in the local cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE once")
    cause: BaseException = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    if isinstance(cause, errors.GatedRepoError) or status == 403:
        return CheckpointError(
            f"{repo}: gated, and this account has no access",
            f"accept its terms at {constants.ENDPOINT}/{repo}, then log in with: hf auth login",
        )
    if isinstance(cause, errors.RepositoryNotFoundError) or status == 401:
        return CheckpointError(
            f"{repo}: no such folder here and no such model on the hub",
            "check the name; for a private or gated model log in first: hf auth login",
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo}: no revision {revision!r}", f"see {constants.ENDPOINT}/{repo}/commits/main")
    if isinstance(cause, errors.HFValidationError):
        return CheckpointError(f"{repo!r}: neither a folder or file here nor a hub id", "hub ids are org/name")
    if isinstance(cause, errors.LocalEntryNotFoundError) or _unreachable(cause):
        return CheckpointError(
            f"{at}: not in the local cache, and the hub can't be reached",
            f"check the connection to {constants.ENDPOINT}, or give a folder",
        )
    line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return CheckpointError(
        f"{at}: can't be downloaded ({line})", "try again; if it stays so, download it with: hf download"
    )


def _progress_class(total: int, report: Callable[[float], None]) -> type[Any]:
    """A silent progress bar that passes on the fraction of ``total`` bytes that has come."""
    from huggingface_hub.utils.tqdm import tqdm

    best = 0.0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._seen = 0.0
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal best
            self._seen += n or 0
            # There may be a bar for bytes received and one for bytes written: the one ahead speaks.
            if self._counts_bytes and total and (done := min(1.0, self._seen / total)) > best:
                best = done
                report(done)

    return Bar
