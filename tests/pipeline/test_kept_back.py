"""Windows that share text with those kept back take no part, whatever their length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.pipeline.texts import without


def windows(label: str, ids: list[list[int]]) -> TokenWindows:
    return TokenWindows(label, np.array(ids, dtype=np.int64))


@given(seed=st.integers(0, 1000), context=st.sampled_from([64, 100, 256]), kept=st.integers(0, 7))
def test_what_shares_64_tokens_in_a_row_goes(seed: int, context: int, kept: int) -> None:
    """One text in windows of 128 and of another length: overlaps are known by where windows lie."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 5000, 1024)
    back = windows("t", [list(text[kept * 128 : kept * 128 + 128])])
    starts = range(0, 1024 - context + 1, context)
    used = windows("t", [list(text[s : s + context]) for s in starts])
    (parts,) = without([used], [back])
    found = [row for part in parts for row in part.ids_NT.tolist()]
    overlap = [min(s + context, kept * 128 + 128) - max(s, kept * 128) for s in starts]
    assert found == [row for row, o in zip(used.ids_NT.tolist(), overlap, strict=True) if o < 64]


def test_texts_keep_their_names_and_short_windows_count_whole() -> None:
    one, two = windows("a", [[1, 2, 3, 4], [5, 6, 7, 8]]), windows("b", [[9, 9, 9, 9], [0, 1, 2, 3]])
    back = [windows("a", [[5, 6, 7, 8, 9, 9]])]
    found = [part for parts in without([one, two], back) for part in parts]
    assert [(text.label, text.ids_NT.tolist()) for text in found] == [
        ("a", [[1, 2, 3, 4]]),
        ("b", [[9, 9, 9, 9], [0, 1, 2, 3]]),
    ]
    assert [[len(part.ids_NT) for part in parts] for parts in without([one, two], [])] == [[2], [2]]
