"""A mixture: text sources with weights, which divide a number of tokens among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ffn_fusion.data.hub_text import PREFIX, HubText
from ffn_fusion.errors import UsageError


@dataclass(frozen=True)
class Weighted:
    """A source with a weight other than 1, the default."""

    where: Path | HubText
    weight: float

    def __str__(self) -> str:
        return f"{self.where}={self.weight:g}"


TextEntry = Path | HubText | Weighted


def parse_entry(value: Any) -> TextEntry:
    """Parse a source as a person writes it: ``PATH`` or ``hub:OWNER/NAME``, optionally followed by ``=WEIGHT``, or
    ``{"text": ..., "weight": ...}``.

    Raises:
        UsageError: the entry has none of these forms, or its weight is not a positive number.
    """
    if isinstance(value, Path | HubText | Weighted):
        value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        return _parse_word(value)
    if isinstance(value, dict):
        if not {"text"} <= set(value) <= {"text", "weight"} or not isinstance(value["text"], str | Path):
            raise UsageError(f"{value!r} is no text", "write {text: PATH, weight: 2}")
        return _weighted(_source(str(value["text"])), value.get("weight", 1.0))
    if isinstance(value, HubText | Weighted):
        return value
    raise UsageError(f"{value!r} is no text", "give a path, hub:OWNER/NAME, or {text: PATH, weight: 2}")


def entry_json(entry: TextEntry) -> str | dict[str, Any]:
    """Return an entry in the form that ``parse_entry`` reads."""
    return {"text": str(entry.where), "weight": entry.weight} if isinstance(entry, Weighted) else str(entry)


def where(entry: TextEntry) -> Path | HubText:
    return entry.where if isinstance(entry, Weighted) else entry


def resolved(entry: TextEntry, folder: Path) -> TextEntry:
    """Return the entry with its path made absolute relative to ``folder``."""
    if isinstance(entry, Weighted):
        inner = resolved(entry.where, folder)
        assert not isinstance(inner, Weighted)
        return Weighted(inner, entry.weight)
    return (folder / entry.expanduser()).resolve() if isinstance(entry, Path) else entry


def shares(entries: Sequence[TextEntry], tokens: int, unit: int = 1) -> list[int]:
    """Divide ``tokens`` by weight; each share is rounded up to a whole number."""
    weights = [Fraction(str(entry.weight)) if isinstance(entry, Weighted) else Fraction(1) for entry in entries]
    return [math.ceil(tokens * weight / sum(weights) / unit) for weight in weights]


def _parse_word(word: str) -> TextEntry:
    name, equals, weight = word.rpartition("=")
    if not equals or Path(word).exists():
        return _source(word)
    try:
        number = float(weight)
    except ValueError:  # the name has this sign in it
        return _source(word)
    return _weighted(_source(name), number)


def _source(word: str) -> Path | HubText:
    return HubText.parse(word) if word.startswith(PREFIX) else Path(word)


def _weighted(source: Path | HubText, weight: Any) -> TextEntry:
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
        raise UsageError(f"{source}: the weight {weight!r} isn't a positive number", "write a weight like 2 or 0.5")
    return source if weight == 1 else Weighted(source, float(weight))
