"""Stream a data set of the Hugging Face hub with the ``datasets`` library, without ever running its code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ffn_fusion.data.parquet import columns, no_field
from ffn_fusion.data.pieces import pieces_of
from ffn_fusion.data.text import FIELDS, Document, row_document
from ffn_fusion.errors import DataError, MissingExtraError, UsageError

PREFIX = "hub:"
_FORM = re.compile(r"hub:([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.-]+))?(?:#([\w./-]+))?")


@dataclass(frozen=True)
class HubText:
    """A split of a hub data set, in its own order.

    Args:
        config: the configuration to read, if the data set has several.
        revision: a branch, tag or commit; None means the main branch at the time reading begins.
    """

    repo: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def parse(cls, word: str) -> HubText:
        """Parse ``hub:OWNER/NAME[:CONFIG][@SPLIT][#REVISION]``.

        Raises:
            UsageError: the word has another form.
        """
        found = _FORM.fullmatch(word)
        if not found:
            raise UsageError(
                f"{word!r} names no data set",
                "write hub:OWNER/NAME, optionally followed by :CONFIG, @SPLIT or #REVISION",
            )
        repo, config, split, revision = found.groups()
        return cls(repo, config, split or "train", revision)

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{PREFIX}{self.repo}{config}@{self.split}" + (f"#{self.revision}" if self.revision else "")

    @property
    def label(self) -> str:
        return self.repo.split("/")[-1] + (f":{self.config}" if self.config else "")

    def reader(self, size: int, position: dict[str, Any] | None = None) -> HubReader:
        return HubReader(self, size, **(position or {}))

    def state(self) -> str:
        return str(self)


class HubReader:
    """Reads a data set at one commit: the one in ``position``, or the newest."""

    def __init__(
        self, source: HubText, size: int, commit: str | None = None, rows: int = 0, state: dict[str, Any] | None = None
    ) -> None:
        self._source, self._size, self._commit, self._rows, self._state = source, size, commit, rows, state
        self._rows_left: Any = None

    def __iter__(self) -> Iterator[list[Document]]:
        source = self._source
        with _one_line(source):
            self._rows_left = self._opened()
            for row in self._rows_left:
                self._rows += 1
                document = row_document(row, f"{source}: row {self._rows}")
                if not isinstance(document, str) or document.strip():
                    yield pieces_of(document, self._size)

    def position(self) -> dict[str, Any]:
        state = self._state if self._rows_left is None else self._rows_left.state_dict()
        return {"commit": self._commit, "rows": self._rows, "state": state}

    def _opened(self) -> Any:
        """The data set, from our place in it on, with the field that we read alone."""
        datasets = _datasets(self._source)
        from huggingface_hub import HfApi, constants

        source = self._source
        if not self._commit and not constants.HF_HUB_OFFLINE:
            self._commit = HfApi().dataset_info(source.repo, revision=source.revision).sha
        opened = datasets.load_dataset(
            f"hf://datasets/{source.repo}",  # never a folder here of the same name
            source.config,
            split=source.split,
            streaming=True,
            revision=self._commit or source.revision,
        )
        there = list(opened.features or next(iter(opened), {}))
        wanted = columns(there, FIELDS)
        if not wanted:
            raise no_field(source, there)
        opened = opened.select_columns(wanted)
        if self._state is not None:
            opened.load_state_dict(self._state)
        return opened


def _datasets(source: HubText) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{source}: needs datasets", "pip install 'ffn-fusion[data]'") from error
    return datasets


@contextmanager
def _one_line(source: HubText) -> Iterator[None]:
    """Convert any error of datasets and huggingface_hub to one line that says what to do."""
    try:
        yield
    except (DataError, MissingExtraError, GeneratorExit):
        raise
    except Exception as error:  # each builder, file system and HTTP library has its own
        raise _explain(error, source) from error


def _explain(error: Exception, source: HubText) -> DataError:
    from huggingface_hub import constants, errors

    causes = list(_causes(error))
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes) or constants.HF_HUB_OFFLINE:
        return DataError(f"{source}: not reached, HF_HUB_OFFLINE is set", "unset it, or give local files")
    for cause in causes:
        if isinstance(cause, errors.GatedRepoError):
            return DataError(
                f"{source}: gated, and this account has no access",
                f"accept its terms at {constants.ENDPOINT}/datasets/{source.repo}, then log in with: hf auth login",
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return DataError(
                f"{source}: no such data set on the hub",
                "check the name; for a private one log in first: hf auth login",
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return DataError(f"{source}: no such revision", "name a branch, a tag or a commit that's there")
        if isinstance(cause, ConnectionError) or "TransportError" in (kind.__name__ for kind in type(cause).__mro__):
            return DataError(
                f"{source}: the hub can't be reached",
                f"check the connection to {constants.ENDPOINT}; what was read already stays, the same command goes on",
            )
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "scripts are no longer supported" in line:
        return DataError(f"{source}: needs code of its own, which is never run", "choose a data set of plain files")
    if "Config name is missing" in line or "BuilderConfig" in line:
        there = re.search(r"\[.*?\]", str(error).replace("\n", " "))
        return DataError(
            f"{source}: has several configs{': ' + there[0] if there else ''}",
            f"name one: {PREFIX}{source.repo}:CONFIG",
        )
    if "Bad split" in line:
        return DataError(f"{source}: {line}", f"name a split: {PREFIX}{source.repo}@SPLIT")
    return DataError(f"{source}: can't be read ({line})", "try again: what was read already stays")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
