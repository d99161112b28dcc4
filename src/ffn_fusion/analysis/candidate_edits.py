"""Candidates as edits of a sweep: stretches, plain and repaired, and attentions dropped alone, repaired."""

from __future__ import annotations

from collections.abc import Sequence

from ffn_fusion.analysis.candidates import StretchShape
from ffn_fusion.analysis.observe import removed
from ffn_fusion.blockwise import Edit, FusedStretch
from ffn_fusion.families import ModelSpec
from ffn_fusion.repair.candidate import RepairedStretch, Workbench


def stretch_edits(shapes: Sequence[StretchShape], bench: Workbench | None = None) -> dict[str, Edit]:
    """Every stretch; with a ``bench``, every stretch repaired as well."""
    edits: dict[str, Edit] = {
        stretch_name(s): FusedStretch(s.first, s.last, s.fused_last, s.keeps_attention) for s in shapes
    }
    if bench is None:
        return edits
    longest: dict[tuple[int, bool], StretchShape] = {}
    for s in sorted(shapes, key=lambda s: s.fused_last):
        longest[s.first, s.keeps_attention] = s
    for s in shapes:
        lender = longest[s.first, s.keeps_attention]
        edits[repaired_name(stretch_name(s))] = RepairedStretch(
            s.first,
            s.last,
            s.fused_last,
            s.keeps_attention,
            bench,
            lender=None if s is lender else repaired_name(stretch_name(lender)),
        )
    return edits


def repaired_removals(spec: ModelSpec, bench: Workbench) -> dict[str, Edit]:
    """Every attention dropped alone, with its block's FFN repaired where it's a gated one."""
    return {
        repaired_name(removed("attention", i)): RepairedStretch(i, i, i, False, bench)
        for i, block in enumerate(spec.blocks)
        if block.attention and block.ffn and block.ffn.kind == "gated"
    }


def stretch_name(shape: StretchShape) -> str:
    return f"stretch {shape.first}-{shape.last} to {shape.fused_last}{' kept' if shape.keeps_attention else ''}"


def repaired_name(name: str) -> str:
    return f"repaired {name}"
