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
