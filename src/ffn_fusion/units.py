"""Sizes as people write and read them."""

from __future__ import annotations

import re

from ffn_fusion.errors import UsageError

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


def parse_bytes(text: str) -> int:
    """``"16GiB"``, ``"16 GB"``, ``"1.5g"`` or plain bytes -> bytes.

    Raises:
        UsageError: not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{text!r} isn't a size", "write it like 16GiB or 16GB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def parse_count(text: str) -> int:
    """``"200k"``, ``"1.5M"``, ``"54B"`` or plain digits -> a number of tokens; k is 1,000.

    Raises:
        UsageError: not a count.
    """
    units = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.strip().upper())
    count = round(float(found[1]) * units[found[2]]) if found else 0
    if count <= 0:
        raise UsageError(f"{text!r} isn't a number of tokens", "write it like 200000 or 200k")
    return count


def parse_seconds(text: str) -> float:
    """``"20ms"``, ``"1.5s"``, ``"300us"`` or plain seconds -> seconds.

    Raises:
        UsageError: not a time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(s|ms|us|µs|)", text.strip().lower())
    seconds = float(found[1]) * {"ms": 1e-3, "us": 1e-6, "µs": 1e-6}.get(found[2], 1) if found else 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{text!r} isn't a time", "write it like 20ms or 1.5s")
    return seconds


def parse_stage(text: str) -> tuple[int, int]:
    """``"200k:512"`` -> 200,000 tokens in windows of 512.

    Raises:
        UsageError: not two counts, or windows of less than 8.
    """
    tokens, _, context = text.partition(":")
    if not context:
        raise UsageError(f"{text!r} isn't a stage", "write tokens and context, like --stage 200k:512")
    if parse_count(context) < 8:
        raise UsageError(f"a stage {text!r} has windows of less than 8 tokens", "choose a longer context")
    return parse_count(tokens), parse_count(context)


def gib(count: float) -> str:
    """Memory: ``3.8 GiB``."""
    return f"{count / (1 << 30):.1f} GiB"


def gb(count: float) -> str:
    """Disk and traffic: ``12.0 GB``."""
    return f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h`` or ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
