"""Pieces are those of the whole text, in whatever blocks it comes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.data.pieces import cut

TEXT = st.text(alphabet="ab \n\u2003", max_size=60)


def by_the_book(document: str, size: int) -> Iterator[str]:
    """With the whole text in memory, copied for every piece."""
    if not document.strip():
        return
    while len(document) > size:
        end = max(document.rfind("\n", size // 2, size), document.rfind(" ", size // 2, size))
        end = end if end > 0 else size
        yield document[:end]
        document = document[end:].lstrip()
    if document.strip():
        yield document


@given(text=TEXT, size=st.integers(2, 20), ends=st.lists(st.integers(0, 60)))
def test_blocks_make_no_difference(text: str, size: int, ends: list[int]) -> None:
    ends = sorted({0, len(text), *(end for end in ends if end < len(text))})
    blocks = [text[a:b] for a, b in pairwise(ends)]
    assert list(cut(blocks, size)) == list(by_the_book(text, size))


def test_long_blanks_come_to_an_end() -> None:
    assert list(cut([" " * 50] * 3, 10)) == []
    assert list(cut([" " * 50, " x"], 10)) == [" " * 9, "x"]
