"""Cut text into token windows of equal length, selected by a seed.

Texts larger than memory go through in buffers: as many pieces of documents as fit into ``source.BUFFER`` characters are
shuffled together and cut into windows. A text that fits into one buffer is shuffled completely.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ffn_fusion.data.conversation import Conversation
from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.source import Position, Source, buffers, source_of
from ffn_fusion.data.text import Document, no_text
from ffn_fusion.data.vocabulary import check_ids
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import DataError

_CHARACTERS_PER_TOKEN = 6  # a piece of a long document holds a window or two, so that few tokens come from many places
_TOGETHER = 64  # pieces that are tokenised at once
MIN_WINDOWS = 2  # a standard error needs two


def make_windows(
    tokenizer: Any,
    path: Path | HubText,
    context: int,
    tokens: int,
    *,
    seed: int = 0,
    label: str | None = None,
    vocabulary: int | None = None,
) -> TokenWindows:
    """Cut about ``tokens`` tokens of the text at ``path`` into windows of ``context``.

    Documents are cut into pieces of about one window, which are shuffled with ``seed``, 64 million characters at a
    time. Long pieces are split into full windows; short ones are joined with the end-of-text token between them. If the
    tokenizer begins texts with a special token, every window begins with it. Conversations are formatted with the
    tokenizer's chat template and cut before user turns. Remainders of pieces are used if the text is short; a text that
    is shorter than requested gives fewer windows.

    Args:
        vocabulary: number of tokens that the model knows; a text with others is refused.

    Raises:
        CheckpointError: a token isn't in the vocabulary.
        DataError: the text cannot be read, has fewer than two windows, or contains a conversation that the chat
            template refuses. MissingExtraError: it is a .parquet file or a hub data set, and the extra ``data`` is not
            installed.
    """
    source, wanted = source_of(path), wanted_windows(context, tokens)
    buffered = windows_of(tokenizer, source, context, seed, vocabulary=vocabulary)
    rows = list(islice((row for found, _ in buffered for row in found), wanted))
    check_enough(source, len(rows), context)
    return TokenWindows(label or source.label, np.asarray(rows, dtype=np.int64))


def count_windows(
    tokenizer: Any,
    path: Path | HubText,
    context: int,
    tokens: int,
    *,
    seed: int = 0,
    label: str | None = None,
    vocabulary: int | None = None,
) -> TokenWindows:
    """Return as many windows as :func:`make_windows` would, all of one token, to plan without reading the whole text.

    A text larger than one buffer is assumed to be long enough.
    """
    source, wanted = source_of(path), wanted_windows(context, tokens)
    buffered = windows_of(tokenizer, source, context, seed, vocabulary=vocabulary)
    count = sum(1 for _ in islice(next(buffered)[0], wanted))
    if count < wanted and next(buffered, None) is not None:
        count = wanted
    check_enough(source, count, context)
    return TokenWindows(label or source.label, np.broadcast_to(np.zeros((), np.int64), (count, context)))


def wanted_windows(context: int, tokens: int) -> int:
    return max(MIN_WINDOWS, -(-tokens // context))


def check_enough(source: Source, windows: int, context: int) -> None:
    if windows < MIN_WINDOWS:
        raise DataError(
            f"{source}: too short: {windows} window of {context:,} tokens, and {MIN_WINDOWS} are needed",
            "give more text or a shorter context",
        )


def windows_of(
    tokenizer: Any,
    source: Source,
    context: int,
    seed: int,
    number: int = 0,
    position: Position | None = None,
    vocabulary: int | None = None,
) -> Iterator[tuple[Iterator[list[int]], Position]]:
    """Yield the windows of each buffer of a source from a given buffer on, and the position after it.

    Each buffer is shuffled with its own seed and used up, so what follows does not depend on earlier buffers.
    """
    start, end = _special(tokenizer)
    check_ids([*start, *end], vocabulary, tokenizer, source)
    room = context - len(start)
    reader = source.reader(room * _CHARACTERS_PER_TOKEN, position)
    found = False
    for here, pieces in enumerate(buffers(reader), number):
        random.Random(f"{seed}/{here}" if here else seed).shuffle(pieces)
        encoded = _encode(tokenizer, pieces, start, end)
        yield _windows(_checked(encoded, vocabulary, tokenizer, source), start, room), reader.position()
        pieces.clear()  # before the next buffer is read
        found = True
    if not found and position is None:
        raise no_text(source)


def _checked(
    encoded: Iterable[tuple[list[int], list[int]]], vocabulary: int | None, tokenizer: Any, source: Source
) -> Iterator[tuple[list[int], list[int]]]:
    for ids, ending in encoded:
        check_ids(ids, vocabulary, tokenizer, source)
        yield ids, ending


def _windows(encoded: Iterable[tuple[list[int], list[int]]], start: list[int], room: int) -> Iterator[list[int]]:
    joined, left = list[int](), array("i")
    for ids, ending in encoded:
        if len(ids) < room:
            joined += ids + ending
            if len(joined) < room:
                continue
            ids, ending, joined = joined, [], []
        yield from _rows(ids, start, room)
        left.extend(ids[len(ids) // room * room :] + ending)
    left.extend(joined)
    yield from _rows(left, start, room)


def _rows(ids: Sequence[int], start: list[int], room: int) -> Iterator[list[int]]:
    for i in range(0, len(ids) - room + 1, room):
        yield start + list(ids[i : i + room])


def _encode(
    tokenizer: Any, pieces: Sequence[Document], start: list[int], end: list[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens of each piece and those that end it; chat templates write their own special tokens.

    The first pieces are tokenised one by one, so that a few windows tokenise no more text than they need.
    """
    at = 0
    while at < len(pieces):
        some = pieces[at : at + max(1, min(_TOGETHER, at // _TOGETHER))]
        at += len(some)
        texts = [piece if isinstance(piece, str) else piece.render(tokenizer) for piece in some]
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for piece, ids in zip(some, encoded, strict=True):
            yield _ended(ids, start, end) if isinstance(piece, Conversation) else (ids, end)


def _ended(ids: list[int], start: list[int], end: list[int]) -> tuple[list[int], list[int]]:
    if start and ids[:1] == start:
        ids = ids[1:]
    return ids, [] if end and end[0] in ids[-2:] else end  # the last may be a line end


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that begin every window, and those that end every piece."""
    empty: Sequence[int] = tokenizer("")["input_ids"]
    start = list(empty[:1]) if empty and empty[0] == tokenizer.bos_token_id else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return start, end
