"""What a distillation minimised, over the tokens that it learnt from: one curve through all stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.report import palette
from ffn_fusion.report.block_axis import plain_log
from ffn_fusion.report.formats import count
from ffn_fusion.report.svg import render
from ffn_fusion.report.training_grids import trainings

from matplotlib.ticker import FuncFormatter  # isort: skip

_PARTS = {
    "divergence": ("kl", palette.FUSED, "divergence of distributions"),
    "cosine": ("cosine", palette.ATTENTION, "cosine distance of states"),
    "lm": ("lm", palette.PRUNED, "language-model loss"),
}


def has_curve(record: Mapping[str, Any]) -> bool:
    return any(stage.get("history") for stage in trainings(record))


def distillation_curve(record: Mapping[str, Any]) -> str:
    """The loss and its parts, each times its weight; a line where a stage ends.

    Args:
        record: ``distillation.json``; an earlier distillation's history isn't in it.
    """
    stages = [stage for stage in trainings(record) if stage.get("history")]
    parts = [name for name, (weight, *_) in _PARTS.items() if any(_objective(stage)[weight] for stage in stages)]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        begin = 0.0
        for number, stage in enumerate(stages, 1):
            each = stage["tokens"] / stage["steps"]
            rows, first = stage["history"], number == 1
            at = [begin + row["step"] * each for row in rows]
            label = {"label": "loss" if first and len(parts) > 1 else None}
            if len(parts) > 1:
                axes.plot(at, [row["loss"] for row in rows], color=palette.INK, lw=1.6, **label)
            for name in parts:
                key, colour, says = _PARTS[name]
                weight = _objective(stage)[key]
                if weight:
                    values = [weight * row[name] for row in rows]
                    axes.plot(at, values, color=colour, lw=1.3, label=says if _first(stages, stage, key) else None)
            _border(axes, begin, f"stage {number}: context {stage['context']:,}" if len(stages) > 1 else "", number)
            begin += stage["tokens"]
        axes.set_xlim(0, begin)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.set_xlabel("tokens learnt from")
        axes.set_ylabel("loss a token\n(nats, log)")
        axes.grid(True, axis="y")
        plain_log(axes)
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.06), borderaxespad=0)

    return render(draw, 10.6, 3.2, "chart: the distillation's loss over the tokens, stage by stage")


def _objective(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = stage["settings"]["objective"]
    return found


def _first(stages: list[Mapping[str, Any]], stage: Mapping[str, Any], key: str) -> bool:
    return next(other for other in stages if _objective(other)[key]) is stage


def _border(axes: Any, at: float, says: str, number: int) -> None:
    if number > 1:
        axes.axvline(at, color=palette.FAINT, lw=0.9, ls=(0, (4, 3)))
    axes.annotate(says, (at, 1), (4, 3), ("data", "axes fraction"), "offset points", color=palette.FAINT, fontsize=8)
