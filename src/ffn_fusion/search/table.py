"""Tables of scores and costs, CSV or Parquet by the file's ending. No torch.

A row's key names a choice: what a child may have in place of some blocks of its parent. Scores say how much quality it
loses, costs what it takes. docs/search.md describes every column.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import Field, TypeAdapter, ValidationError, field_serializer, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from ffn_fusion.blueprint import Block, Kind, Parent
from ffn_fusion.blueprint.kinds import PlannedAttention, PlannedFfn
from ffn_fusion.blueprint.ranges import LARGEST
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.errors import DataError, MissingExtraError, OutputError, UsageError
from ffn_fusion.settings import Frozen

KEPT = "kept"
"""The choice that stands for what the parent has."""
REST = "rest"
"""In a costs table, what isn't in any block."""
PARENT = "parent"
"""In a scores table, the row whose ``blocks`` describes the parent."""

TablePart = Literal["attention", "ffn", "block", "model"]
_LONGEST_CELL = 1 << 24
"""Characters: the channels of a narrowed FFN of a 405B model are several times the csv module's own limit."""
_ROUNDING = 1e-6
"""A KL divergence that was computed in float32 may be this far below 0, in nats a token."""
_CONTENT: Mapping[TablePart, TypeAdapter[Any]] = {
    "attention": TypeAdapter(PlannedAttention),
    "ffn": TypeAdapter(PlannedFfn),
    "block": TypeAdapter(Annotated[tuple[Block, ...], Field(min_length=1)]),
    "model": TypeAdapter(Parent),
}


class Key(NamedTuple):
    """A choice by name: the parent blocks that it stands for (both ends inclusive), the part of them, and a word."""

    first_block: int
    last_block: int
    part: TablePart
    choice: str

    def __str__(self) -> str:
        one = self.first_block == self.last_block
        blocks = f"block {self.first_block}" if one else f"blocks {self.first_block}-{self.last_block}"
        return f"{self.choice!r} for {'' if self.part == 'block' else f'the {self.part} of '}{blocks}"


class _Row(Frozen):
    first_block: int = Field(ge=0, le=LARGEST, description="First parent block that the choice stands for, from 0.")
    last_block: int = Field(ge=0, le=LARGEST, description="Last parent block that it stands for, inclusive.")
    part: TablePart = Field(
        description="What of these blocks: `attention`, `ffn`, or `block` for both; `model` in the special rows below."
    )
    choice: str = Field(
        min_length=1,
        max_length=200,
        description="A word for it, such as `kept`, `none`, `linear`, `1 KV head`, `width 50%` or `fused`.",
    )

    @field_validator("choice")
    @classmethod
    def _printable(cls, choice: str) -> str:
        if not choice.isprintable() or not choice.strip():
            raise ValueError("the word of a choice is empty or has control characters")
        return choice.strip()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last_block < self.first_block:
            raise ValueError(f"last_block {self.last_block} is before first_block {self.first_block}")
        if self.choice == KEPT and self.last_block > self.first_block:
            raise ValueError(f"{KEPT!r} is a choice for one block, not for {self.first_block}-{self.last_block}")
        special = _SPECIAL[type(self)]
        if self.part == "model" and self.choice != special:
            raise ValueError(f"of part 'model' there is only {special!r}")
        return self

    @property
    def key(self) -> Key:
        """The choice that the row is about."""
        return Key(self.first_block, self.last_block, self.part, self.choice)


class ScoreRow(_Row):
    """One choice's score: the quality that the parent loses with this choice alone; lower is better."""

    score: float = Field(
        allow_inf_nan=False, description="Quality lost, lower is better; for the metric `kl` in nats a token."
    )
    standard_error: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Standard error of the score; empty where it isn't known."
    )
    metric: str = Field("kl", min_length=1, max_length=60, description="What was measured; one metric a table.")
    blocks: tuple[Block, ...] | Kind | Parent | None = Field(
        None,
        description="JSON of what the child has there: for `attention` and `ffn` the kind, for `block` the list of the "
        "child's blocks, both as in a blueprint.",
    )

    @field_validator("blocks", mode="wrap")
    @classmethod
    def _read_blocks(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        if value is None or "part" not in info.data:
            return None
        try:
            content = json.loads(value) if isinstance(value, str) else value
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        return _CONTENT[info.data["part"]].validate_python(content)

    @field_serializer("blocks")
    def _write_blocks(self, value: Any) -> str | None:
        if value is None:
            return None
        dumped = _CONTENT[self.part].dump_python(value, mode="json")
        return json.dumps(dumped, separators=(",", ":"))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.metric == "kl" and self.score < -_ROUNDING:
            raise ValueError(f"a KL divergence can't be negative: {self.score:g}")
        blocks = self.blocks
        if isinstance(blocks, Kind):
            if not set(blocks.sources) <= set(range(self.first_block, self.last_block + 1)):
                raise ValueError(f"blocks: sources {list(blocks.sources)} aren't all in {self.key}")
            if blocks.present and self.last_block > self.first_block:
                raise ValueError("blocks: a sub-block made of several blocks needs part 'block'")
        elif isinstance(blocks, tuple):
            ends = [end for block in blocks for end in (block.parent_blocks[0] - 1, block.parent_blocks[1])]
            if [self.first_block - 1, *ends[1::2]] != [*ends[::2], self.last_block]:
                raise ValueError(f"blocks: {[block.parent_blocks for block in blocks]} don't cover {self.key}")
        return self


class CostRow(_Row):
    """What one choice takes; several rows where its seconds were measured at several batches and contexts.

    A column that is filled for one choice must be filled for all of them.
    """

    parameters: int | None = Field(None, ge=0, description="Weights, those of the norms included.")
    weight_bytes: int | None = Field(None, ge=0, description="Bytes of the weights as they are served.")
    kv_bytes: int | None = Field(None, ge=0, description="Bytes that each token of a sequence adds to the KV cache.")
    steps: int | None = Field(
        None, ge=0, description="Sequential sub-blocks: one for each attention, one for each (fused) FFN."
    )
    batch: int | None = Field(None, ge=1, description="Sequences at a time, for which the seconds hold.")
    context: int | None = Field(
        None, ge=1, description="Tokens of each prompt in a prefill, and tokens in the KV cache at a decode step."
    )
    prefill_seconds: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Seconds of a prefill of the whole batch."
    )
    decode_seconds: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Seconds of one decode step of the whole batch, a token for each."
    )

    @model_validator(mode="after")
    def _with_scenario(self) -> Self:
        if (self.batch is None) != (self.context is None):
            raise ValueError("batch and context go together")
        if self.batch is None and not (self.prefill_seconds is None and self.decode_seconds is None):
            raise ValueError("seconds hold for one batch and context; fill those columns")
        return self


_SPECIAL: Mapping[type[_Row], str] = {ScoreRow: PARENT, CostRow: REST}
RowT = TypeVar("RowT", bound=_Row)


def read_scores(path: Path) -> list[ScoreRow]:
    """Read a scores table.

    Raises:
        DataError: not such a table; the line names row and column. MissingExtraError: Parquet, and no pyarrow.
    """
    return list(_read(path, ScoreRow))


def read_costs(path: Path) -> list[CostRow]:
    """Read a costs table. Raises: as :func:`read_scores`."""
    return list(_read(path, CostRow))


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write a scores table, in one step; an existing file is replaced.

    Raises:
        UsageError: the ending is neither .csv nor .parquet. OutputError: the file can't be written.
        MissingExtraError: Parquet, and no pyarrow.
    """
    _write(path, ScoreRow, rows)


def write_costs(path: Path, rows: Iterable[CostRow]) -> None:
    """Write a costs table. Raises: as :func:`write_scores`."""
    _write(path, CostRow, rows)


# ---- files


def _read(path: Path, kind: type[RowT]) -> Iterator[RowT]:
    found = False
    try:
        for place, cells in _parquet_rows(path) if _ending(path) == ".parquet" else _csv_rows(path):
            if not found:
                _check_columns(path, list(cells), kind)
            found = True
            given = {
                name: value for name, value in cells.items() if name in kind.model_fields and value not in ("", None)
            }
            yield read_row(f"{path}, {place}", kind, given)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", "name a table of scores or costs") from error
    if not found:
        raise DataError(f"{path}: no rows", f"a table has the columns {', '.join(_required(kind))}, see docs/search.md")


def read_row(place: str, kind: type[RowT], cells: Mapping[str, Any]) -> RowT:
    """One row of a table.

    Raises:
        DataError: it isn't; the line says that it's at ``place``, and names the column.
    """
    try:
        return kind.model_validate(cells)
    except ValidationError as error:
        first = error.errors()[0]
        column = next((str(part) for part in first["loc"]), "")
        found = f" (found {str(first['input'])[:60]!r})" if column in cells else ""
        said = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"{place}: {column + ': ' if column else ''}{said}{found}", "docs/search.md describes the columns"
        ) from error


def _check_columns(path: Path, columns: list[str], kind: type[_Row]) -> None:
    """Refuse a table without a column that is needed, or with one that says what ours says under another name."""
    missing = [name for name in _required(kind) if name not in columns]
    for name in columns:
        if name in kind.model_fields:
            continue
        stem = re.split(r"[_ (]", name.strip().lower())[0]
        free = [known for known in kind.model_fields if known not in columns]
        near = [known for known in free if known.split("_")[0] == stem] or get_close_matches(name, free, 1)
        if near:
            raise DataError(f"{path}: unknown column {name!r}; the expected one is {near[0]}", _hint(kind, near[0]))
    if missing:
        raise DataError(f"{path}: no column {missing[0]}", _hint(kind, missing[0]))


def _hint(kind: type[_Row], column: str) -> str:
    return f"{column}: {kind.model_fields[column].description}"


def _required(kind: type[_Row]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.is_required()]


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for cells in reader:
                if None in cells or None in cells.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: not as many cells as the heading has",
                        "quote cells that hold commas",
                    )
                yield f"line {reader.line_num}", cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV table ({error})", "write it again, in UTF-8, or as .parquet") from error
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    pyarrow, parquet = _pyarrow(path)
    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: not a whole Parquet file ({line})", "write it again") from error
    yield from ((f"row {number}", cells) for number, cells in enumerate(rows, start=1))


def _write(path: Path, kind: type[RowT], rows: Iterable[RowT]) -> None:
    table = [row.model_dump() for row in rows]
    columns = [name for name in kind.model_fields if any(row[name] is not None for row in table)]
    if _ending(path) == ".parquet":
        pyarrow, parquet = _pyarrow(path)
        schema = pyarrow.schema([(name, _arrow_type(pyarrow, kind, name)) for name in columns])
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(table, schema=schema), buffer)
        content = buffer.getvalue()
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        content = text.getvalue().encode()
    try:
        write_atomic(path, content)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", "name a file in a folder that exists") from error


def _arrow_type(pyarrow: Any, kind: type[_Row], name: str) -> Any:
    annotation = kind.model_fields[name].annotation
    kinds = get_args(annotation) or (annotation,)
    return pyarrow.int64() if int in kinds else pyarrow.float64() if float in kinds else pyarrow.string()


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: Parquet needs pyarrow", "pip install 'ffn-fusion[data]', or use .csv"
        ) from error
    return pyarrow, parquet


def _ending(path: Path) -> str:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"{path}: a table ends in .csv or .parquet", "rename it, or write it anew")
    return path.suffix.lower()
