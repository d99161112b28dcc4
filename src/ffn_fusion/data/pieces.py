"""Cut documents into pieces of one or two windows, so that a few tokens come from many places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ffn_fusion.data.conversation import Conversation
from ffn_fusion.data.text import Document


def pieces_of(document: Document, size: int) -> list[Document]:
    """Yield pieces of at most ``size`` characters; conversations are cut before user turns."""
    return list(document.parts(size) if isinstance(document, Conversation) else cut([document], size))


def cut(blocks: Iterable[str], size: int) -> Iterator[str]:
    """Cut a text that arrives in blocks at line ends or blanks, independently of the block boundaries."""
    rest, blank, begun = "", "", False
    for block in blocks:
        rest = rest + block if rest or not begun else block.lstrip()
        at = 0
        while len(rest) - at > size:
            half, full = at + size // 2, at + size
            end = max(rest.rfind("\n", half, full), rest.rfind(" ", half, full))
            end = end if end > at else full
            piece, at = rest[at:end], _next_word(rest, end)
            if not begun and not piece.strip():
                blank = piece  # only the first piece can be blank; kept if more follows
            else:
                yield from (part for part in (blank, piece) if part)
                blank = ""
            begun = True
        rest = rest[at:]
    if rest.strip():
        yield from (part for part in (blank, rest) if part)


def _next_word(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
