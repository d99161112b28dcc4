"""How fast models are, as measured: whole models, what they move, sub-blocks, and wider FFNs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ffn_fusion.report.formats import Span, byte_count, count, per_second, printable, rate, seconds, times
from ffn_fusion.report.grid import MODEL, Column, Grid, words

if TYPE_CHECKING:
    from ffn_fusion.families import ModelSpec
    from ffn_fusion.latency.sub_block_costs import SubBlocks, SubBlockTiming
    from ffn_fusion.latency.timing import Latency, Roofline, Timing
    from ffn_fusion.latency.width_curve import WidthCurve, WidthPoint

_SETTING = words("setting")
_MEDIAN = Column("median", seconds)
_SPREAD = Column("p10–p90", seconds)  # noqa: RUF001
_LIMIT = Column("of the limit", str, optional=True)


def latency_grid(latency: Latency) -> Grid:
    """Median and spread of single runs of every model, setting by setting, and how many times as fast as the others.

    A prefill's time is the time to the first token, a decode step's that of each later token.
    """
    others = [model for model in latency.models if any(model in timing.speedup for timing in latency.timings)]
    place = latency_place(latency)
    return Grid.of(
        _sorted(latency),
        (_SETTING, _names(latency)),
        (MODEL, lambda timing: timing.model),
        (_MEDIAN, lambda timing: timing.median_s / timing.steps),
        (_SPREAD, lambda timing: Span(timing.p10_s / timing.steps, timing.p90_s / timing.steps)),
        (Column("tokens/s", per_second), lambda timing: timing.tokens_per_second),
        (_LIMIT, lambda timing: _share_of_limit(timing)),
        *((Column(f"over {printable(other)}", times), lambda t, o=other: _speed_over(t, o)) for other in others),
        notes=[
            f"{place[:1].upper()}{place[1:]}. Prefill is the time to the first token, decode the time of a step, which "
            "is that of each later token. Over: how many times as fast, the median over interleaved runs."
        ],
        grouped=True,
    )


def _speed_over(timing: Timing, other: str) -> float | None:
    return None if timing.model == other else timing.speedup.get(other)


def work_grid(latency: Latency) -> Grid | None:
    """What each run has to read and compute, and the memory it takes at most; None where that wasn't counted."""
    counted = [(timing, timing.work) for timing in _sorted(latency) if timing.work]
    if not counted:
        return None
    name = _names(latency)
    return Grid.of(
        counted,
        (_SETTING, lambda pair: name(pair[0])),
        (MODEL, lambda pair: pair[0].model),
        (Column("weights", byte_count), lambda pair: pair[1].weight_bytes),
        (Column("KV cache", byte_count), lambda pair: pair[1].kv_bytes),
        (Column("moved per token", byte_count), lambda pair: pair[0].moved_per_token or 0),
        (Column("FLOPs", count), lambda pair: pair[1].flops),
        (Column("peak memory", byte_count), lambda pair: pair[0].memory_bytes),
        notes=["Bytes and FLOPs of a prefill or a decode step: weights read once, KV cache read and written."],
        grouped=True,
    )


def _sorted(latency: Latency) -> list[Timing]:
    """Prefills first, by setting, each with the models in their order."""
    order = {model: place for place, model in enumerate(latency.models)}
    return sorted(
        latency.timings,
        key=lambda t: (t.phase != "prefill", t.batch, t.context, t.new_tokens, order.get(t.model, len(order))),
    )


def _names(latency: Latency) -> Callable[[Timing], str]:
    """What a timing's setting is called; the context is left out where all have the same."""
    one_context = len({timing.context for timing in latency.timings}) == 1
    return lambda t: f"{t.phase}, batch {t.batch}" + ("" if one_context else f", context {t.context:,}")


def latency_place(latency: Latency) -> str:
    """Where and how it was measured: timings mean nothing without it."""
    parts = [f"{latency.engine} on {latency.machine}", _threads(latency.threads), latency.dtype]
    parts += [f"{latency.tensor_parallel} processes per model"] if latency.tensor_parallel > 1 else []
    contexts = {timing.context for timing in latency.timings}
    rounds = {timing.rounds for timing in latency.timings}
    parts += [f"context {context:,} tokens" for context in contexts if len(contexts) == 1]
    parts += [f"{number} rounds" for number in rounds if len(rounds) == 1]
    parts += [_limits(latency.roofline)] if latency.roofline else []
    return printable(", ".join(parts))


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number != 1)}"


def _limits(roofline: Roofline) -> str:
    return f"limits {rate(roofline.bytes_per_second, 'B')} read and {rate(roofline.flops_per_second, 'FLOP')}"


_BOUNDS = {"bandwidth": "B/s", "compute": "FLOP/s"}


def _share_of_limit(timing: Timing | SubBlockTiming) -> str | None:
    """``34 % B/s``: how near a run comes to the limit that bounds it."""
    if timing.limit_share is None or timing.limited_by is None:
        return None
    return f"{100 * timing.limit_share:.0f} % {_BOUNDS[timing.limited_by]}"


# ---- sub-blocks


def sub_block_grid(found: SubBlocks, models: Mapping[str, ModelSpec]) -> Grid:
    """Every shape of sub-block, setting by setting, and what the shapes of each model add up to."""
    rows: list[tuple[str, str, float, SubBlockTiming | None]] = []
    for phase, batch, context in dict.fromkeys((t.phase, t.batch, t.context) for t in found.timings):
        name = f"{phase}, batch {batch}, context {context:,}"
        timings = [t for t in found.timings if (t.phase, t.batch, t.context) == (phase, batch, context)]
        rows += [(name, timing.shape.words, timing.median_s, timing) for timing in timings]
        for model, spec in models.items():
            rows.append((name, f"all of {model}", found.seconds(spec, phase, batch, context), None))
    how = ", as CUDA graphs" if found.cuda_graph else ""
    place = f"{found.engine}{how} on {found.machine}, {_threads(found.threads)}, {found.dtype}"
    return Grid.of(
        rows,
        (_SETTING, lambda row: row[0]),
        (words("sub-block"), lambda row: row[1]),
        (_MEDIAN, lambda row: row[2]),
        (_SPREAD, lambda row: Span(row[3].p10_s, row[3].p90_s) if row[3] else None),
        (_LIMIT, lambda row: _share_of_limit(row[3]) if row[3] else None),
        notes=[
            printable(f"{place}, {_limits(found.roofline)}."),
            "Norm and residual sum are included; a head computes the last token alone.",
        ],
        grouped=True,
    )


# ---- wider FFNs


_UNSURE = 0.03
"""Standard error of a ratio from which on a note says so."""


def width_grid(curve: WidthCurve) -> Grid:
    """The time of each width over that of the same FFNs one after the other, at every batch."""
    place = f"{curve.engine} on {curve.machine}, {_threads(curve.threads)}, {curve.dtype}."
    found = f"The widest FFN that isn't slower is {curve.max_width or 0:,} wide."
    if curve.max_width is None:
        found = "No width that the model can have is slower: plans need no limit."
    widths = sorted({point.width for point in curve.points})
    rows = [[point for point in curve.points if point.width == width] for width in widths]
    return Grid.of(
        rows,
        (Column("width"), lambda points: points[0].width),
        (Column("FFNs in it"), lambda points: points[0].fused),
        *(column for n, batch in enumerate(curve.batches) for column in _batch_columns(n, batch)),
        notes=[printable(place), found, *_doubts(curve)],
    )


def _batch_columns(n: int, batch: int) -> Iterable[tuple[Column, Callable[[list[WidthPoint]], object]]]:
    def ratio(points: list[WidthPoint]) -> str:
        point = points[n]
        return f"{point.ratio:.3f} ± {point.error:.3f}{' slower' if point.slower else ''}"

    yield Column(f"batch {batch}: time / unfused", str), ratio
    yield Column("GB/s", lambda value: f"{value / 1e9:.1f}"), lambda points: points[n].bytes_per_second


def _doubts(curve: WidthCurve) -> list[str]:
    error = max(point.error for point in curve.points)
    if error <= _UNSURE:
        return []
    return [f"Ratios are only known to {2 * error:.2f}: measure on a quiet machine, or with more --rounds."]
