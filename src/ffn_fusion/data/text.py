"""Reading text: a .txt file, a .jsonl file of texts or conversations, or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_fusion.data.conversation import ROLES, Conversation, Message
from ffn_fusion.errors import DataError

_TEXTS = Path(__file__).parent / "texts"
_KINDS = ("speeches.txt", "encyclopedia.txt", "news.txt", "web.txt", "instructions.jsonl")
BUILT_IN_CALIBRATION = tuple(_TEXTS / "calibration" / kind for kind in _KINDS)
BUILT_IN_HELD_OUT = tuple(_TEXTS / "held_out" / kind for kind in _KINDS)
"""A little of everything, so that a first run needs nothing; decisions that matter need text like the use."""

Document = str | Conversation
_SUFFIXES = (".txt", ".jsonl")


def read_documents(path: Path) -> list[Document]:
    """The documents of a file or folder, in the order of their names; empty ones left out.

    A .txt file is one document. A line of a .jsonl file is ``{"text": ...}``, or a conversation,
    ``{"messages": [{"role": ..., "content": ...}, ...]}``.

    Raises:
        DataError: nothing there, not text, a line that is neither, or no text in it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path}: no .txt or .jsonl file in it", "give a text file, or a folder of them")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: no such file", "give a .txt file, a .jsonl file, or a folder of them")
    documents = [d for file in files for d in _read(file) if isinstance(d, Conversation) or d.strip()]
    if not documents:
        raise DataError(f"{path}: holds no text", "give a text of a few thousand words at least")
    return documents


def _read(path: Path) -> Iterator[Document]:
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check that it can be read") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start:,})", "convert it to UTF-8") from error
    if path.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would cut at U+2028 inside a string
        if line.strip():
            yield _document(line, f"{path}:{number}", plain=_TEXTS in path.parents)


def _document(line: str, place: str, *, plain: bool) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON", "write one object a line") from error
    fields = record if isinstance(record, dict) else {}
    if "text" in fields:
        return _string(fields["text"], f"{place}: text")
    if "messages" in fields:
        return Conversation(tuple(_messages(fields["messages"], place)), place, plain)
    raise DataError(f"{place}: no JSON object with a text or a messages field", "write one object a line")


def _messages(value: Any, place: str) -> Iterator[Message]:
    hint = 'write {"messages": [{"role": "user", "content": "..."}, ...]}'
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: messages is no list of messages", hint)
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise DataError(f"{place}: message {number} has no role and content", hint)
        if message["role"] not in ROLES:
            raise DataError(f"{place}: message {number} has the role {message['role']!r}", f"use {', '.join(ROLES)}")
        yield Message(message["role"], _string(message["content"], f"{place}: message {number}'s content"))


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} is no text", "write it as a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a \ud83d\ude00 pair
        raise DataError(f"{what} holds half a character", "write characters beyond U+FFFF in full") from error
    return value
