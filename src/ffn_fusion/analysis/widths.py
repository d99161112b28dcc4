"""Widths of narrowed FFNs. No torch."""

from __future__ import annotations

import math

from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE


def narrower(width: int, share: float, multiple: int = WIDTH_MULTIPLE) -> int:
    """``share`` of an FFN's width, rounded as ``channels.narrow_ffns`` says; halves up."""
    if width <= multiple or share == 1:
        return max(1, round(share * width))
    return min(width, max(1, math.floor(share * width / multiple + 0.5)) * multiple)
