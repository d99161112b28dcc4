"""The windows of text that the stages read: to calibrate, to repair and train on, and to score on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.mixture import TextEntry, shares, where
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.data.source import source_of
from ffn_fusion.data.text import BUILT_IN_CALIBRATION, BUILT_IN_HELD_OUT
from ffn_fusion.data.vocabulary import check_ids
from ffn_fusion.data.window_file import write_windows
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.data.windows import count_windows, make_windows
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.processes import Progress

_KEPT_BACK = 4
"""Windows of every text that are kept back to measure what a repair or a training gained on text that is new to it."""
_ALIKE = 64
"""Tokens in a row that two windows must share to count as the same text: more than a chat template has."""

Windows = tuple[list[TokenWindows], list[TokenWindows]]
"""Windows to learn from, and windows that are kept back."""
Cut = Callable[[int, Path | HubText, int], TokenWindows]
"""Cuts windows of a text, given its number, where it is, and how many tokens of it."""


def state(section: TextSettings) -> str:
    """Return names, sizes and ages of a section's text files, so that a changed text is measured again."""
    return "\n".join(filter(None, (source_of(where(entry)).state() for entry in section.texts)))


def calibration_windows(model: Checkpoint, section: TextSettings, seed: int) -> list[TokenWindows]:
    """Cut the calibration windows, of every text by its weight."""
    texts: Sequence[TextEntry] = section.texts or BUILT_IN_CALIBRATION
    tokenizer, vocabulary = _tokenizer(model, section.context)
    return [
        make_windows(tokenizer, where(text), section.context, share, seed=seed, vocabulary=vocabulary)
        for text, share in zip(texts, shares(texts, section.tokens), strict=True)
    ]


def held_out_windows(model: Checkpoint, section: TextSettings, seed: int) -> list[TokenWindows]:
    """Cut the evaluation windows, of every text the same number of tokens.

    Raises:
        DataError: two texts with the same name, or a text that can't be used.
    """
    texts = [where(text) for text in section.texts or BUILT_IN_HELD_OUT]
    if len({source_of(text).label for text in texts}) < len(texts):
        raise DataError("two evaluation texts have the same name", "rename one; names label the tables")
    tokenizer, vocabulary = _tokenizer(model, section.context)
    return [
        make_windows(tokenizer, text, section.context, section.tokens, seed=seed, vocabulary=vocabulary)
        for text in texts
    ]


def split_windows(model: Checkpoint, wanted: TextSettings, seed: int) -> Windows:
    """Cut about as many tokens as wanted to learn from, and a few windows of every text that are kept back.

    They are kept in memory: the states that a repair keeps of a token are a thousand times larger.
    """
    tokenizer, vocabulary = _tokenizer(model, wanted.context)

    def cut(number: int, text: Path | HubText, tokens: int) -> TokenWindows:
        return make_windows(tokenizer, text, wanted.context, tokens, seed=seed, vocabulary=vocabulary)

    return _kept_apart(wanted, cut)


def training_windows(
    model: Checkpoint, wanted: TextSettings, seed: int, files: Path | None, progress: Progress
) -> Windows:
    """Cut windows as ``split_windows`` does, but into files, which may be far larger than memory.

    Args:
        files: a folder for one file of each text; None only counts the windows.
    """
    return _kept_apart(wanted, _to_files(model, wanted, seed, files, progress))


def check_prompts(model: Checkpoint, prompts: Sequence[str]) -> None:
    """Check prompts to be continued. Raises: CheckpointError: the model doesn't know one of their tokens."""
    tokenizer, vocabulary = _tokenizer(model)
    for prompt in prompts:
        check_ids(tokenizer(prompt)["input_ids"], vocabulary, tokenizer, f"prompt {prompt!r}")


def all_windows(
    model: Checkpoint, wanted: TextSettings, seed: int, files: Path | None, progress: Progress
) -> list[TokenWindows]:
    """Cut windows as ``training_windows`` does, if none have to be kept back."""
    cut = _to_files(model, wanted, seed, files, progress)
    return [
        cut(number, where(entry), wanted.context * windows) for number, (entry, windows) in enumerate(_asked(wanted))
    ]


def _to_files(model: Checkpoint, wanted: TextSettings, seed: int, files: Path | None, progress: Progress) -> Cut:
    tokenizer, vocabulary = _tokenizer(model, wanted.context)

    def cut(number: int, text: Path | HubText, tokens: int) -> TokenWindows:
        cutter = count_windows if files is None else partial(write_windows, file=files / str(number), progress=progress)
        return cutter(tokenizer, text, wanted.context, tokens, seed=seed, vocabulary=vocabulary)

    return cut


def _tokenizer(model: Checkpoint, context: int = 0) -> tuple[Any, int]:
    """Return the tokenizer of a checkpoint, and the number of tokens that its model knows.

    Raises:
        UsageError: the model has no positions for windows of ``context`` tokens.
    """
    most = model.spec.positions
    if most is not None and context > most:
        raise UsageError(
            f"windows of {context:,} tokens, and {model.name} has positions for {most:,}", f"--context {most} or less"
        )
    return load_tokenizer(model.folder), model.spec.vocab_size


def _asked(wanted: TextSettings) -> list[tuple[TextEntry, int]]:
    """Return each text, and how many windows of it."""
    texts: Sequence[TextEntry] = wanted.texts or BUILT_IN_CALIBRATION
    return list(zip(texts, shares(texts, wanted.tokens, wanted.context), strict=True))


def _kept_apart(wanted: TextSettings, cut: Cut) -> Windows:
    used, kept_back = [], []
    for number, (entry, asked) in enumerate(_asked(wanted)):
        text = cut(number, where(entry), wanted.context * (asked + _KEPT_BACK))
        there = len(text.ids_NT)
        at = asked if there > asked else there - min(_KEPT_BACK, there // 4)
        used.append(text.part(0, at))
        kept_back.append(text.part(at, there).in_memory())
    return used, [text for text in kept_back if len(text.ids_NT)]


def without(texts: Sequence[TokenWindows], kept_back: Sequence[TokenWindows]) -> list[list[TokenWindows]]:
    """Return the windows of each text that share no ``_ALIKE`` tokens in a row with those kept back.

    Several stages may cut the same text into windows of different lengths. The windows stay in their files, so those of
    a text come in parts, between the ones that are left out.
    """
    kept = [text.ids_NT for text in kept_back]
    length = min([_ALIKE, *(ids.shape[1] for ids in kept), *(text.ids_NT.shape[1] for text in texts)])
    known = np.unique(np.concatenate([_hashes(ids, length).ravel() for ids in kept] or [np.zeros(0, np.uint64)]))
    return [_parts(text, _shared(text.ids_NT, length, known)) for text in texts]


def _parts(text: TokenWindows, gone: npt.NDArray[np.bool_]) -> list[TokenWindows]:
    ends = [-1, *np.flatnonzero(gone).tolist(), len(gone)]
    return [text.part(a + 1, b) for a, b in pairwise(ends) if b > a + 1]


def _shared(ids_NT: npt.NDArray[np.integer[Any]], length: int, known: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Look at one window at a time, so that the hashes need little memory beside the tokens."""
    found = [np.isin(_hashes(row[None], length), known).any() for row in ids_NT]
    return np.array(found, dtype=bool)


def _hashes(ids_NT: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.uint64]:
    """Hash every ``length`` tokens in a row, [N, T] -> [N, T - length + 1]; overflow is part of the hash."""
    found = np.zeros((ids_NT.shape[0], ids_NT.shape[1] - length + 1), np.uint64)
    for shift in range(length):
        found = found * np.uint64(0x9E3779B97F4A7C15) + ids_NT[:, shift : shift + found.shape[1]].astype(np.uint64)
    return found
