"""Documents -> windows of tokens, all of one length, chosen by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.data.conversation import Conversation
from ffn_fusion.data.text import Document, read_documents
from ffn_fusion.errors import CheckpointError, DataError

_CHARACTERS_PER_TOKEN = 6  # a piece of a long document holds a window or two, so that few tokens come from many places
MIN_WINDOWS = 2  # a standard error needs two


@dataclass(frozen=True)
class TokenWindows:
    """``ids_NT``: N windows of T token ids of the text called ``label``."""

    label: str
    ids_NT: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.ids_NT.size)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a checkpoint; code of its own is never run.

    Raises:
        CheckpointError: there is none, or it needs its own code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each means that there's no usable tokenizer
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{folder}: no usable tokenizer ({line})", "put tokenizer.json beside the weights"
        ) from error


def make_windows(
    tokenizer: Any, path: Path, context: int, tokens: int, *, seed: int = 0, label: str | None = None
) -> TokenWindows:
    """Cut about ``tokens`` tokens of the text at ``path`` into windows of ``context``.

    Documents are cut into pieces of about a window, the pieces shuffled by ``seed``. A piece that fills windows gives
    them; shorter ones are joined, with the end-of-text token between them. Where the tokenizer begins a text with a
    special token, every window begins with it. A conversation is written by the tokenizer's chat template and cut
    before a user's turn. What is left over of pieces is used where the text is short; one shorter than asked for gives
    the windows that it has.

    Raises:
        DataError: the text has fewer than two windows, or a conversation that the chat template can't write.
    """
    start, end = _special(tokenizer)
    room = context - len(start)
    wanted = max(MIN_WINDOWS, -(-tokens // context))
    pieces = [p for document in read_documents(path) for p in _pieces(document, room * _CHARACTERS_PER_TOKEN)]
    random.Random(seed).shuffle(pieces)
    rows: list[list[int]] = []
    joined: list[int] = []
    left: list[int] = []
    for piece in pieces:
        ids, ending = _encode(tokenizer, piece, start, end)
        if len(ids) < room:
            joined += ids + ending
            if len(joined) < room:
                continue
            ids, ending, joined = joined, [], []
        rows += _rows(ids, start, room)
        left += ids[len(ids) // room * room :] + ending
        if len(rows) >= wanted:
            break
    else:
        rows += _rows(left + joined, start, room)
    if len(rows) < MIN_WINDOWS:
        raise DataError(
            f"{path}: too short: {len(rows)} window of {context:,} tokens, and {MIN_WINDOWS} are needed",
            "give more text or a shorter context",
        )
    return TokenWindows(label or path.stem, np.asarray(rows[:wanted], dtype=np.int64))


def _rows(ids: list[int], start: list[int], room: int) -> list[list[int]]:
    return [start + ids[i : i + room] for i in range(0, len(ids) - room + 1, room)]


def _pieces(document: Document, size: int) -> Iterator[Document]:
    """Cut at line ends or blanks into pieces of at most ``size`` characters; conversations before a user's turn."""
    if isinstance(document, Conversation):
        yield from document.parts(size)
        return
    while len(document) > size:
        cut = max(document.rfind("\n", size // 2, size), document.rfind(" ", size // 2, size))
        cut = cut if cut > 0 else size
        yield document[:cut]
        document = document[cut:].lstrip()
    if document.strip():
        yield document


def _encode(tokenizer: Any, piece: Document, start: list[int], end: list[int]) -> tuple[list[int], list[int]]:
    """A piece's tokens, and what ends it; chat templates write those that begin and end a text themselves."""
    text = piece if isinstance(piece, str) else piece.render(tokenizer)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if isinstance(piece, str):
        return ids, end
    if start and ids[:1] == start:
        ids = ids[1:]
    return ids, [] if end and end[0] in ids[-2:] else end  # the last may be a line end


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that begin every window, and tokens that end every piece."""
    empty: Sequence[int] = tokenizer("")["input_ids"]
    start = list(empty[:1]) if empty and empty[0] == tokenizer.bos_token_id else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return start, end
