"""matplotlib figures as SVG text for a page to hold inline, the same bytes every time.

No pyplot: no global figure list, no display. Settings hold only while a figure is drawn.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

from ffn_fusion.errors import MissingExtraError
from ffn_fusion.report import palette

try:
    import matplotlib.style
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError(
        "figures need matplotlib, which isn't installed", "pip install 'ffn-fusion[report]'"
    ) from error

_STYLE = {
    "svg.hashsalt": "ffn-fusion",
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "text.parse_math": False,  # a $ in a model's name is a $
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": palette.FAINT,
    "axes.labelcolor": palette.INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "xtick.color": palette.FAINT,
    "ytick.color": palette.FAINT,
    "xtick.labelcolor": palette.INK,
    "ytick.labelcolor": palette.INK,
    "text.color": palette.INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def render(
    draw: Callable[[Any], None], width: float, height: float, label: str, tooltips: Mapping[str, str] | None = None
) -> str:
    """Draw on a fresh figure of ``width`` x ``height`` inches and return it as one ``<svg>`` element.

    Args:
        label: what the figure shows, for those who can't see it.
        tooltips: what is shown while the mouse is over an artist, by the artist's gid.
    """
    with _drawn(draw, width, height) as figure:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    for gid, says in (tooltips or {}).items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(says)}</title>', 1)
    return _standalone(text, label)


def render_png(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """The same as a PNG file, on white."""
    with _drawn(draw, width, height) as figure:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _drawn(draw: Callable[[Any], None], width: float, height: float) -> Iterator[Figure]:
    with matplotlib.style.context(["default", _STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        yield figure


def _standalone(text: str, label: str) -> str:
    """The figure without its prolog, its ids and style sheet renamed so that many figures can share a page."""
    body = text[text.index("<svg") :].strip()
    name = "f" + hashlib.sha256(body.encode()).hexdigest()[:10]
    body = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'xlink:href="#{name}-')
    body = body.replace("*{stroke-linejoin", f"#{name} *{{stroke-linejoin")
    assert "<!DOCTYPE" not in body
    return body.replace("<svg ", f'<svg id="{name}" role="img" aria-label="{escape(label)}" ', 1)
