"""Reading text: a .txt file, a .jsonl file with a "text" field a line, or a folder of them."""

from __future__ import annotations

import json
from pathlib import Path

from ffn_fusion.errors import DataError

_TEXTS = Path(__file__).parent / "texts"
BUILT_IN_CALIBRATION = _TEXTS / "calibration.txt"
BUILT_IN_HELD_OUT = _TEXTS / "held_out.txt"
"""Speeches in the public domain, so that a first run needs nothing; decisions that matter need text like the use."""

_SUFFIXES = (".txt", ".jsonl")


def read_documents(path: Path) -> list[str]:
    """The documents of a file or folder, in the order of their names; empty ones left out.

    Raises:
        DataError: nothing there, not text, a line that isn't JSON, or no text in it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path}: no .txt or .jsonl file in it", "give a text file, or a folder of them")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: no such file", "give a .txt file, a .jsonl file, or a folder of them")
    documents = [document for file in files for document in _read(file) if document.strip()]
    if not documents:
        raise DataError(f"{path}: holds no text", "give a text of a few thousand words at least")
    return documents


def _read(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check that it can be read") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start:,})", "convert it to UTF-8") from error
    if path.suffix != ".jsonl":
        return [content]
    documents = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            documents.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: no JSON object with a text field", "write one object a line") from error
    return documents
