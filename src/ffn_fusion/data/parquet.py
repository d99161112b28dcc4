"""Read rows of a local .parquet file, a few at a time. Needs pyarrow, which is installed with ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ffn_fusion.errors import DataError, MissingExtraError

TOOLS = "tools"
_ROWS = 1024  # read at once


def read_rows(file: Path, fields: Sequence[str], after: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows after the first ``after``, restricted to ``fields``; row groups before them are not read.

    Raises:
        DataError: the file is not a complete parquet file, or has none of the fields. MissingExtraError: no pyarrow.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(f"{file}: parquet needs pyarrow", "pip install 'ffn-fusion[data]'") from error

    try:
        with ParquetFile(file) as parquet:
            there = parquet.schema_arrow.names
            wanted = columns(there, fields)
            if not wanted:
                raise no_field(file, there)
            groups, skip = _groups_after(parquet, after)
            for batch in parquet.iter_batches(_ROWS, row_groups=groups, columns=wanted):
                rows = batch.to_pylist()
                yield from rows[skip:]
                skip = max(0, skip - len(rows))
    except (pyarrow.ArrowException, OSError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{file}: not a whole parquet file ({line})", "get it again, or leave it out") from error


def columns(there: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Return the columns of a table to read: the first of ``fields``, and the tools that a conversation may call."""
    found = [field for field in fields if field in there][:1]
    return [*found, *(name for name in there if name == TOOLS and found)]


def no_field(where: object, there: Sequence[str]) -> DataError:
    """Return the error for a table that has no known text column."""
    return DataError(
        f"{where}: no text or messages field, it has {', '.join(there) or 'none'}",
        "rename the field that holds the text, or convert it to a .jsonl file",
    )


def _groups_after(parquet: Any, after: int) -> tuple[list[int], int]:
    """Return the row groups after the first ``after`` rows, and the number of rows to skip in the first of them."""
    count = parquet.metadata.num_row_groups
    for group in range(count):
        rows = parquet.metadata.row_group(group).num_rows
        if after < rows:
            return list(range(group, count)), after
        after -= rows
    return [], 0
