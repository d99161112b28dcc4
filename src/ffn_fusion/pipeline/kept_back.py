"""Windows that take no part, when several stages cut the same text into windows of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.data import TokenWindows

_ALIKE = 64
"""Tokens in a row that make text the same: more than a chat template's own."""


def without(texts: Sequence[TokenWindows], kept_back: Sequence[TokenWindows]) -> list[list[TokenWindows]]:
    """Of each text the windows that share no ``_ALIKE`` tokens in a row with those kept back, in parts; they stay where
    they lie.
    """
    kept = [text.ids_NT for text in kept_back]
    length = min([_ALIKE, *(ids.shape[1] for ids in kept), *(text.ids_NT.shape[1] for text in texts)])
    known = np.unique(np.concatenate([_hashes(ids, length).ravel() for ids in kept] or [np.zeros(0, np.uint64)]))
    return [_parts(text, _shares(text.ids_NT, length, known)) for text in texts]


def _parts(text: TokenWindows, gone: npt.NDArray[np.bool_]) -> list[TokenWindows]:
    """What lies between those that are gone."""
    ends = [-1, *np.flatnonzero(gone).tolist(), len(gone)]
    return [text.part(a + 1, b) for a, b in pairwise(ends) if b > a + 1]


def _shares(ids_NT: npt.NDArray[np.integer[Any]], length: int, known: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Window by window, so that little stands in memory beside the tokens."""
    found = [np.isin(_hashes(row[None], length), known).any() for row in ids_NT]
    return np.array(found, dtype=bool)


def _hashes(ids_NT: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.uint64]:
    """A number for every ``length`` tokens in a row: [N, T] -> [N, T - length + 1]; overflow is part of it."""
    found = np.zeros((ids_NT.shape[0], ids_NT.shape[1] - length + 1), np.uint64)
    for shift in range(length):
        found = found * np.uint64(0x9E3779B97F4A7C15) + ids_NT[:, shift : shift + found.shape[1]].astype(np.uint64)
    return found
