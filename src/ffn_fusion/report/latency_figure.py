"""Times to the first and of each further token, model beside model, with how fast this machine could be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ffn_fusion.report import palette
from ffn_fusion.report.formats import printable
from ffn_fusion.report.latency_grids import latency_place
from ffn_fusion.report.svg import render, render_png

from matplotlib.lines import Line2D  # isort: skip
from matplotlib.patches import Patch  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.latency.timing import Latency, Phase

_PANELS: tuple[tuple[Phase, str], ...] = (("prefill", "time to first token"), ("decode", "time per output token"))
_BAR = 0.8  # of the room between two settings
_LONGEST_NAME = 28


def latency_bars(latency: Latency) -> str:
    """The medians as bars, p10 to p90 around them; the least time that the machine's limits allow as a line."""
    return render(lambda figure: _draw(figure, latency), *_size(latency), "bars: time to first and per output token")


def latency_png(latency: Latency) -> bytes:
    """The same as a PNG file."""
    return render_png(lambda figure: _draw(figure, latency), *_size(latency))


def _size(latency: Latency) -> tuple[float, float]:
    return max(6.6, min(14.0, 1.2 + 0.5 * len(latency.models) * len(latency.settings))), 3.4


def _draw(figure: Any, latency: Latency) -> None:
    colours = palette.model_colours(latency.models)
    for axes, (phase, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        _panel(axes, latency, phase, colours)
        axes.set_title(title)
    handles: list[Any] = [Patch(color=colours[m], label=_short(printable(m))) for m in latency.models]
    if latency.roofline:
        handles.append(Line2D([], [], color=palette.INK, lw=1.4, label="least by this machine's limits"))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), handlelength=1.2)
    figure.supxlabel(_wrapped(latency_place(latency)), fontsize=7, color=palette.FAINT)


def _panel(axes: Any, latency: Latency, phase: Phase, colours: dict[str, str]) -> None:
    width = _BAR / len(latency.models)
    for place, (batch, context) in enumerate(latency.settings):
        for k, model in enumerate(latency.models):
            timing = latency.get(model, phase, batch, context)
            low, mid, high = (1e3 * s / timing.steps for s in (timing.p10_s, timing.median_s, timing.p90_s))
            x = place + (k - (len(latency.models) - 1) / 2) * width
            axes.bar(x, mid, 0.92 * width, color=colours[model])
            axes.errorbar(
                x, mid, [[max(0, mid - low)], [max(0, high - mid)]], color=palette.INK, elinewidth=0.9, capsize=2
            )
            if timing.limit_share:
                least = mid * timing.limit_share
                axes.plot((x - 0.46 * width, x + 0.46 * width), (least, least), color=palette.INK, lw=1.4)
    axes.set_xticks(range(len(latency.settings)), labels=_labels(latency))
    axes.set_ylabel("milliseconds (lower is better)")
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y")


def _labels(latency: Latency) -> list[str]:
    one_context = len({context for _, context in latency.settings}) == 1
    return [f"batch {b}" if one_context else f"batch {b}\n{c:,} tokens" for b, c in latency.settings]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 110))
