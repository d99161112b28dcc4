"""Ranges as a person writes them, of blocks or of an FFN's channels: ``5-10,17`` and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ffn_fusion.errors import UsageError

LARGEST = 999_999
"""The largest number in a range: a few letters of a hostile file can't ask for all memory."""


def parse_runs(text: str, of: str = "blocks") -> tuple[tuple[int, int], ...]:
    """``"5-9, 17"`` -> ``((5, 9), (17, 17))``, ends inclusive.

    Args:
        of: what the numbers count, for the message.

    Raises:
        UsageError: the text isn't a comma-separated list of numbers and ranges.
    """
    runs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(f"{part!r} is not a range of {of}", "write ranges like 5-10,17 (ends inclusive, from 0)")
        runs.append((first, last))
    return tuple(runs)


def parse_blocks(text: str) -> tuple[int, ...]:
    """``"5-7,17"`` -> ``(5, 6, 7, 17)``; sorted, each once."""
    return tuple(sorted({i for first, last in parse_runs(text) for i in range(first, last + 1)}))


def parse_channels(text: str) -> tuple[int, ...]:
    """``"0-2,7"`` -> ``(0, 1, 2, 7)``. Ascending, each once: so a text of any length stands for few numbers.

    Raises:
        UsageError: it isn't that.
    """
    runs = parse_runs(text, "channels")
    for (_, before), (first, last) in pairwise(runs):
        if first <= before:
            raise UsageError(f"channels {format_runs([(first, last)])} come after {before}", "write them in order")
    return tuple(channel for first, last in runs for channel in range(first, last + 1))


def format_channels(channels: Iterable[int]) -> str:
    """``(0, 1, 2, 7)`` -> ``"0-2,7"``."""
    return format_blocks(channels).replace(" ", "")


def format_blocks(blocks: Iterable[int]) -> str:
    """``(5, 6, 7, 17)`` -> ``"5-7, 17"``; ``"none"`` when there are none."""
    runs: list[list[int]] = []
    for i in sorted(set(blocks)):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return format_runs([(first, last) for first, last in runs])


def format_runs(runs: Sequence[tuple[int, int]]) -> str:
    """``[(5, 9), (17, 17)]`` -> ``"5-9, 17"``."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs) or "none"
