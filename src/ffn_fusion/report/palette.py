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

DISTILLED = "#009e73"
_MODELS = {"parent": PARENT, "pruned": PRUNED, "fused": FUSED, "distilled": DISTILLED}
_OTHERS = ("#cc79a7", "#009e73", "#56b4e9", "#8b6d1f")


def model_colours(models: tuple[str, ...]) -> dict[str, str]:
    """The colour of each model: fixed for parent, pruned, fused and distilled; controls take the others in turn."""
    others = [model for model in models if model not in _MODELS]
    free = [colour for colour in _OTHERS if colour not in {_MODELS.get(model) for model in models}]
    return {model: _MODELS.get(model) or free[others.index(model) % len(free)] for model in models}


TERMINAL_MODELS = {"pruned": "yellow", "fused": "bold blue", "distilled": "bold green"}
"""The same models in a terminal's own colours, as rich names them."""
