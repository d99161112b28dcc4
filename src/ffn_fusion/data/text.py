"""Read text: .txt files, .jsonl and .parquet files of texts or conversations, or a folder of any of these.

Files are streamed: only a block of a .txt file, a line, or a few rows are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ffn_fusion.data import messages
from ffn_fusion.data.conversation import Conversation
from ffn_fusion.data.parquet import TOOLS, read_rows
from ffn_fusion.errors import DataError

_TEXTS = Path(__file__).parent / "texts"
_KINDS = ("speeches.txt", "encyclopedia.txt", "news.txt", "web.txt", "instructions.jsonl")
BUILT_IN_CALIBRATION = tuple(_TEXTS / "calibration" / kind for kind in _KINDS)
BUILT_IN_HELD_OUT = tuple(_TEXTS / "held_out" / kind for kind in _KINDS)
"""A little of everything, so that a first run needs nothing; decisions that matter need text like the use."""

Document = str | Conversation
FIELDS = ("text", *messages.FIELDS)
"""What a record may hold its document in; the first of them that's there counts."""
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_BLOCK = 1 << 20  # characters


def text_files(path: Path) -> list[Path]:
    """Return the text files at a path, ordered by name.

    Raises:
        DataError: there are none.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise DataError(
                f"{path}: no .txt, .jsonl or .parquet file in it", "give a text file, or a folder of such files"
            )
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give a .txt, .jsonl or .parquet file, or a folder of them")
    return [path]


def read_documents(path: Path) -> list[Document]:
    """Return the non-empty documents of a file or folder, ordered by file name, all in memory.

    A .txt file is one document. Each line of a .jsonl file and each row of a .parquet file is ``{"text": ...}``, or a
    conversation, ``{"messages": [{"role": ..., "content": ...}, ...]}`` (or ``data.messages``' other forms).

    Raises:
        DataError: the path does not exist, a file is not text, a line has neither form, or there is no text.
    """
    documents = list[Document]()
    for file in text_files(path):
        documents += read_records(file) if has_records(file) else ["".join(read_blocks(file))]
    documents = [d for d in documents if isinstance(d, Conversation) or d.strip()]
    if not documents:
        raise no_text(path)
    return documents


def no_text(where: object) -> DataError:
    return DataError(f"{where}: holds no text", "give a text of a few thousand words at least")


def has_records(file: Path) -> bool:
    """Return whether a file contains many documents instead of being one."""
    return file.suffix in (".jsonl", ".parquet")


def read_blocks(file: Path) -> Iterator[str]:
    """Yield the text of a .txt file block by block."""
    try:
        with file.open(encoding="utf-8") as lines:
            while block := lines.read(_BLOCK):
                yield block
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", "check that it can be read") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {_bad_byte(file):,})", "convert it to UTF-8") from error


def read_records(file: Path, after: int = 0) -> Iterator[Document]:
    """Yield the documents of a .jsonl or .parquet file after the first ``after``; blank lines are empty documents."""
    if file.suffix == ".parquet":
        for number, row in enumerate(read_rows(file, FIELDS, after), after + 1):
            yield row_document(row, f"{file}: row {number}")
        return
    plain = _TEXTS in file.parents
    for number, line in enumerate(islice(_lines(file), after, None), after + 1):
        yield _document(line, f"{file}:{number}", plain=plain) if line.strip() else ""


def row_document(row: dict[str, Any], place: str) -> Document:
    """Return the document in a table row that has one of ``FIELDS``; a missing value is an empty document.

    Raises:
        DataError: the value is not text.
    """
    return "" if all(row.get(field) is None for field in FIELDS) else _document_of(row, place)


def _document_of(fields: Any, place: str, *, plain: bool = False) -> Document:
    fields = fields if isinstance(fields, dict) else {}
    if "text" in fields:
        return messages.string(fields["text"], f"{place}: text")
    for field in messages.FIELDS:
        if field in fields:
            read = tuple(messages.read_messages(fields[field], field, place))
            return Conversation(read, place, plain, messages.read_tools(fields.get(TOOLS)))
    raise DataError(f"{place}: no JSON object with a text or a messages field", "write one object a line")


def _lines(file: Path) -> Iterator[str]:
    """Split at line feeds only: ``splitlines`` would also cut at U+2028 inside a string."""
    rest = ""
    for block in read_blocks(file):
        *whole, rest = (rest + block).split("\n")
        yield from whole
    yield rest


def _bad_byte(file: Path) -> int:
    """Return the position in the file of the first byte that is not UTF-8; decoders report it relative to a block."""
    before = 0
    with file.open("rb") as lines:
        for line in lines:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return before + error.start
            before += len(line)
    return before


def _document(line: str, place: str, *, plain: bool) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON", "write one object a line") from error
    return _document_of(record, place, plain=plain)
