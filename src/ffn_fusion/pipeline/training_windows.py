"""The windows that a child is repaired or trained on, by weights, and a few of every text that are kept back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ffn_fusion.data import BUILT_IN_CALIBRATION, HubText, TokenWindows, load_tokenizer, make_windows, write_windows
from ffn_fusion.data.mixture import TextEntry, shares, where
from ffn_fusion.data.windows import count_windows
from ffn_fusion.pipeline.recipe import Text
from ffn_fusion.processes import Progress

_KEPT_BACK = 4
"""Windows of every text that take no part in a verb's repair or training, to measure what it gained."""

Windows = tuple[list[TokenWindows], list[TokenWindows]]
Cut = Callable[[int, Path | HubText, int], TokenWindows]
"""The windows of a text by its number, where it is, and how many tokens of it."""


def split_windows(folder: Path, wanted: Text, seed: int) -> Windows:
    """About as many tokens as wanted in windows to learn from, and a few windows of every text that are kept back.

    In memory: what a repair keeps of a token, its states, is a thousand times larger.
    """
    tokenizer = load_tokenizer(folder)

    def cut(number: int, text: Path | HubText, tokens: int) -> TokenWindows:
        return make_windows(tokenizer, text, wanted.context, tokens, seed=seed)

    return _kept_apart(wanted, cut)


def training_windows(folder: Path, wanted: Text, seed: int, files: Path | None, progress: Progress) -> Windows:
    """The same in files, one for each text, which may be far larger than memory; None: as many as there would be."""
    return _kept_apart(wanted, _to_files(folder, wanted, seed, files, progress))


def all_windows(folder: Path, wanted: Text, seed: int, files: Path | None, progress: Progress) -> list[TokenWindows]:
    """The same where none has to be kept back."""
    cut = _to_files(folder, wanted, seed, files, progress)
    return [
        cut(number, where(entry), wanted.context * windows) for number, (entry, windows) in enumerate(_asked(wanted))
    ]


def _to_files(folder: Path, wanted: Text, seed: int, files: Path | None, progress: Progress) -> Cut:
    tokenizer = load_tokenizer(folder)

    def cut(number: int, text: Path | HubText, tokens: int) -> TokenWindows:
        if files is None:
            return count_windows(tokenizer, text, wanted.context, tokens, seed=seed)
        file = files / str(number)
        return write_windows(tokenizer, text, wanted.context, tokens, file, seed=seed, progress=progress)

    return cut


def _asked(wanted: Text) -> list[tuple[TextEntry, int]]:
    """Each text, and how many windows of it."""
    texts: Sequence[TextEntry] = wanted.texts or BUILT_IN_CALIBRATION
    return list(zip(texts, shares(texts, wanted.tokens, wanted.context), strict=True))


def _kept_apart(wanted: Text, cut: Cut) -> Windows:
    used, kept_back = [], []
    for number, (entry, asked) in enumerate(_asked(wanted)):
        text = cut(number, where(entry), wanted.context * (asked + _KEPT_BACK))
        there = len(text.ids_NT)
        at = asked if there > asked else there - min(_KEPT_BACK, there // 4)
        used.append(text.part(0, at))
        kept_back.append(text.part(at, there).in_memory())
    return used, [text for text in kept_back if len(text.ids_NT)]
