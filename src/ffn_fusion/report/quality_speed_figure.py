"""Quality against speed: what was measured, and, drawn as such, what is modelled of other machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ffn_fusion.report import palette
from ffn_fusion.report.formats import printable
from ffn_fusion.report.machine_grids import place_of
from ffn_fusion.report.svg import render

from matplotlib.lines import Line2D  # isort: skip
from matplotlib.ticker import FuncFormatter  # isort: skip

if TYPE_CHECKING:
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.latency.hardware import Prediction
    from ffn_fusion.latency.timing import Latency

_MARKERS = ("o", "s", "^", "D", "v")


def _look(place: int) -> dict[str, Any]:
    """The first batch size is a filled dot, others are larger and open: one sees both where they coincide."""
    marker = _MARKERS[place % len(_MARKERS)]
    return {"marker": marker, "ms": 10, "fillstyle": "none"} if place else {"marker": marker, "ms": 6}


_MODELLED: dict[str, Any] = {"marker": "x", "ms": 7, "ls": (0, (2, 2)), "lw": 0.8, "color": palette.FAINT}


def modelled_at(batch: int, found: Sequence[Mapping[str, Prediction]]) -> dict[str, Mapping[str, Prediction]]:
    """Those of one batch, by their machine."""
    chosen = (models for models in found if next(iter(models.values())).setting.batch == batch)
    return {place_of(next(iter(models.values()))): models for models in chosen}


def _draw_modelled(
    axes: Any, place: str, found: Mapping[str, Prediction], heights: Mapping[str, float], colours: Mapping[str, str]
) -> None:
    """A machine's speeds over the parent: crosses on a dashed line that ends with the machine's name."""
    token = next(iter(found.values())).token
    points = sorted((token / one.token, heights[name], name) for name, one in found.items() if name in heights)
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], **{**_MODELLED, "marker": ""})
    for x, y, name in points[1:]:
        axes.plot(x, y, **{**_MODELLED, "ls": "", "color": colours[name]})
    x, y, _ = points[-1]
    words = f"{place}, modelled"
    axes.annotate(words, (x, y), (2, 7), "data", "offset points", rotation=40, color=palette.FAINT, fontsize=8)


def quality_speed_plot(quality: Quality, latency: Latency, modelled: Sequence[Mapping[str, Prediction]] = ()) -> str:
    """Decode speed over the parent against perplexity on the first text; models that were measured in both.

    Bars: standard error of the perplexity; p10 to p90 of the model's own runs around its median ratio. What is modelled
    of other machines is drawn in dashes, without bars.
    """
    scores = quality.texts[0].scores
    models = [model for model in latency.models if model in scores]
    colours = palette.model_colours(tuple(latency.models))
    batches = sorted({timing.batch for timing in latency.timings if timing.phase == "decode"})
    looks = {batch: _look(place) for place, batch in enumerate(batches)}

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for timing in latency.timings:
            speed = 1.0 if timing.model == "parent" else timing.speedup.get("parent")
            if timing.phase != "decode" or timing.model not in models or speed is None:
                continue
            spread = [
                speed * (1 - timing.median_s / timing.p90_s),
                speed * (timing.median_s / timing.p10_s - 1),
            ]
            score = scores[timing.model]
            axes.errorbar(
                speed, score.perplexity, score.perplexity_error, np.array([spread]).T,
                color=colours[timing.model], elinewidth=1, capsize=2, **looks[timing.batch],
            )  # fmt: skip
        for place, predictions in modelled_at(batches[0], modelled).items():
            _draw_modelled(axes, place, predictions, {m: scores[m].perplexity for m in models}, colours)
        axes.set_xlabel("decode speed over the parent (1 = as fast)")
        axes.set_ylabel(f"perplexity on {printable(quality.texts[0].text)[:40]}\n(lower is better)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))  # noqa: RUF001
        axes.margins(0.12, 0.18)
        axes.grid(True, axis="both")
        axes.annotate("better ↘", (1, 0), (-6, 6), "axes fraction", "offset points", ha="right", color=palette.FAINT)
        dots = [Line2D([], [], marker="o", ls="", ms=8, color=colours[m], label=printable(m)) for m in models]
        shapes = [Line2D([], [], ls="", color=palette.INK, label=f"batch {batch}", **looks[batch]) for batch in batches]
        if modelled:
            shapes.append(Line2D([], [], label=f"modelled, batch {batches[0]}", **_MODELLED))
        columns = 3 if modelled else len(dots + shapes)
        axes.legend(handles=dots + shapes, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1),
                    handletextpad=0.2, columnspacing=1.2, borderaxespad=0.2)  # fmt: skip

    return render(draw, 6.6, 3.9, "scatter: decode speed over the parent against perplexity")
