"""Colours, one meaning each, the same in every figure and table.

Okabe and Ito's set, which colour-blind eyes tell apart.
"""

from __future__ import annotations

PARENT = "#4d4d4d"
PRUNED = "#e69f00"
FUSED = "#0072b2"
ATTENTION = "#009e73"
DROPPED = "#d55e00"
FFN = "#8cc4e6"
FFN_LINE = "#3f95cc"  # the same for thin lines, which are lost in so pale a blue
LINEAR = "#999999"
INK = "#1f2328"
FAINT = "#8a8f98"

_MODELS = {"parent": PARENT, "pruned": PRUNED, "fused": FUSED}
_OTHERS = ("#cc79a7", "#009e73", "#56b4e9", "#8b6d1f")


def model_colours(models: tuple[str, ...]) -> dict[str, str]:
    """The colour of each model: fixed for parent, pruned and fused; controls take the others in turn."""
    others = [model for model in models if model not in _MODELS]
    return {model: _MODELS.get(model) or _OTHERS[others.index(model) % len(_OTHERS)] for model in models}
