"""What the tables say, as text: terminal, page and model card take it from here, and can't disagree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.blueprint.ranges import format_blocks

if TYPE_CHECKING:  # numpy stays out of a plain table on a terminal
    from ffn_fusion.evaluation.quality import Score, TextScores
    from ffn_fusion.latency.timing import Latency, Timing

_NO_CONTROLS = ("parent", "pruned", "fused", "distilled")
NOTHING = "–"  # noqa: RUF001 (a dash in a cell, not a minus)


@dataclass(frozen=True)
class Grid:
    """A table as text. The first ``words`` columns hold words (left), the others numbers (right).

    ``sections``: indices of rows that begin a new section. ``marked``: rows that stand out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    sections: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()


def printable(text: str) -> str:
    """Text of others without control characters: no terminal escapes, no broken table rows."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def plus_minus(value: float, error: float, decimals: int) -> str:
    return f"{value:,.{decimals}f} ± {error:.{decimals}f}"


def small(value: float) -> str:
    """KL and loss: never an exponent for what a person compares."""
    return f"{value:.{_decimals(value)}f}"


def small_pm(value: float, error: float) -> str:
    return plus_minus(value, error, _decimals(value))


def _decimals(value: float) -> int:
    return 4 if abs(value) < 1 else 3


def seconds(*values: float) -> str:
    """One time, or a range of times, in one unit and with three digits that matter."""
    unit, size = next((u for u in (("s", 1.0), ("ms", 1e-3)) if max(values) >= u[1]), ("µs", 1e-6))
    largest = max(values) / size
    decimals = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return "–".join(f"{value / size:,.{decimals}f}" for value in values) + f" {unit}"  # noqa: RUF001


def ratio(value: float) -> str:
    return f"{value:.2f}×"  # noqa: RUF001


def percent(share: float, decimals: int) -> str:
    return f"{100 * share:+.{decimals}f} %".replace("-", "\N{MINUS SIGN}")


def count(value: float) -> str:
    """``134515008`` -> ``134.5M``."""
    return _scaled(value, 1000, ("", "K", "M", "B", "T"), "")


def byte_count(value: float) -> str:
    """``23040`` -> ``23.0 kB`` (powers of ten)."""
    return _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"), " ")


def _scaled(value: float, step: int, units: Sequence[str], space: str) -> str:
    place = 0
    while abs(value) >= step and place < len(units) - 1:
        value, place = value / step, place + 1
    return f"{value:.1f}{space}{units[place]}" if place else f"{value:,.0f}{space}{units[0]}"


def sequential_steps(blueprint: Blueprint) -> tuple[int, int]:
    """Sub-blocks that are computed one after the other: (parent, child)."""
    parent = sum((block.attention is not None) + (block.ffn is not None) for block in blueprint.parent.blocks)
    child = sum((block.attention.kind != "none") + (block.ffn.kind != "none") for block in blueprint.blocks)
    return parent, child


# ---- the blueprint


def plan_grid(blueprint: Blueprint) -> Grid:
    """One row per child block that differs from its parent block."""
    rows = []
    number = 0
    for block, same in changes(blueprint):
        if not same:
            first, last = block.parent_blocks
            child = NOTHING if block.empty else str(number)
            rows.append(
                (
                    child,
                    format_blocks(range(first, last + 1)),
                    _attention(blueprint, block),
                    *_ffn(blueprint, block),
                )
            )
        number += not block.empty
    columns = ("child block", "parent blocks", "attention", "FFN", "FFN width")
    return Grid(columns, tuple(rows), words=4)


def changes(blueprint: Blueprint) -> Iterable[tuple[Block, bool]]:
    """Every block with whether it is what the parent has there."""
    parent = Blueprint.identity(blueprint.parent).blocks
    for block in blueprint.blocks:
        yield block, block == parent[block.parent_blocks[0]]


def _attention(blueprint: Blueprint, block: Block) -> str:
    first, last = block.parent_blocks
    had = [i for i in range(first, last + 1) if blueprint.parent.blocks[i].attention]
    gone = [i for i in had if i not in block.attention.sources]
    if gone == had:
        return "dropped" if had else "none in the parent"
    kept = f"kept ({format_blocks(block.attention.sources)})"
    return f"{kept}, dropped ({format_blocks(gone)})" if gone else "kept"


def _ffn(blueprint: Blueprint, block: Block) -> tuple[str, str]:
    widths = [blueprint.parent.blocks[source].ffn_width for source in block.ffn.sources]
    total = f"{sum(widths):,}"
    if block.ffn.kind == "none":
        return "none", NOTHING
    if block.ffn.kind == "kept":
        return "kept", total if widths[0] else "linear"
    if block.ffn.kind == "narrowed":
        return "narrowed", f"{blueprint.width(block):,} of {total}"
    shown = f"{min(widths):,} to {max(widths):,}, together {total}"
    if len(set(widths)) == 1:
        shown = f"{len(widths)} × {widths[0]:,} = {total}"  # noqa: RUF001
    first, last = block.parent_blocks
    which = "" if len(widths) == last + 1 - first else f" ({format_blocks(block.ffn.sources)})"
    return f"{len(widths)} fused{which}", shown


# ---- what was measured


def quality_grid(scores: TextScores) -> Grid:
    """Every model on one text, with standard errors over windows."""
    parent = scores.scores.get("parent")
    rows = [
        (
            printable(model),
            plus_minus(score.perplexity, score.perplexity_error, 2),
            _loss_increase(score, parent),
            NOTHING if score is parent else small_pm(score.kl, score.kl_error),
            NOTHING if score is parent else plus_minus(100 * score.agreement, 100 * score.agreement_error, 1) + " %",
        )
        for model, score in scores.scores.items()
    ]
    columns = ("model", "perplexity", "loss increase", "KL from parent", "same next token")
    controls = next((i for i, model in enumerate(scores.scores) if model not in _NO_CONTROLS), None)
    return Grid(columns, tuple(rows), sections=frozenset() if controls in (None, 0) else frozenset({controls}))


def _loss_increase(score: Score, parent: Score | None) -> str:
    return NOTHING if parent is None or score is parent else f"{score.loss - parent.loss:+.4f}"


def latency_grid(latency: Latency) -> Grid:
    """Every setting and model: median and spread of single runs, and how many times as fast as the others.

    A prefill's time is the time to the first token, a decode step's that of each token behind it.
    """
    others = [model for model in latency.models if any(model in timing.speedup for timing in latency.timings)]
    limited = any(timing.limit_share is not None for timing in latency.timings)
    rows: list[tuple[str, ...]] = []
    sections = set()
    for name, timings in _by_setting(latency):
        sections |= {len(rows)} if rows else set()
        for place, timing in enumerate(timings):
            rows.append(("" if place else name, *_latency_row(timing, others, limited)))
    against = tuple(f"speed over {printable(other)}" for other in others)
    limit = ("of the limit",) if limited else ()
    columns = ("setting", "model", "median", "p10–p90", "tokens/s", *limit, *against)  # noqa: RUF001
    return Grid(columns, tuple(rows), words=2, sections=frozenset(sections))


def work_grid(latency: Latency) -> Grid | None:
    """What each run has to read and compute, and the memory it takes at most; None where that wasn't counted."""
    rows: list[tuple[str, ...]] = []
    sections = set()
    for name, timings in _by_setting(latency):
        counted = [timing for timing in timings if timing.work]
        sections |= {len(rows)} if rows and counted else set()
        rows += [("" if place else name, *_work_row(timing)) for place, timing in enumerate(counted)]
    columns = ("setting", "model", "weights", "KV cache", "moved a token", "FLOPs", "peak memory")
    return Grid(columns, tuple(rows), words=2, sections=frozenset(sections)) if rows else None


def _by_setting(latency: Latency) -> Iterator[tuple[str, list[Timing]]]:
    """Each setting in words, with its timings in the order of the models."""
    one_context = len({timing.context for timing in latency.timings}) == 1
    for setting in sorted({_setting(timing) for timing in latency.timings}, key=lambda s: (s[0] != "prefill", *s[1:])):
        timings = [timing for timing in latency.timings if _setting(timing) == setting]
        timings.sort(key=lambda timing: latency.models.index(timing.model) if timing.model in latency.models else 99)
        phase, batch, context, _ = setting
        name = f"{phase}, batch {batch}" + ("" if one_context else f", context {context:,}")
        yield name, timings


def _setting(timing: Timing) -> tuple[str, int, int, int]:
    return timing.phase, timing.batch, timing.context, timing.new_tokens


def latency_place(latency: Latency) -> str:
    """Where and on what it was measured: timings mean nothing without it."""
    parts = [
        f"{latency.engine} on {latency.machine}",
        f"{latency.threads} thread{'s' * (latency.threads != 1)}",
        latency.dtype,
    ]
    parts += [f"{latency.tensor_parallel} processes a model"] if latency.tensor_parallel > 1 else []
    contexts = {timing.context for timing in latency.timings}
    rounds = {timing.rounds for timing in latency.timings}
    parts += [f"context {context:,} tokens" for context in contexts if len(contexts) == 1]
    parts += [f"{number} rounds" for number in rounds if len(rounds) == 1]
    if limits := latency.roofline:
        parts.append(f"limits {rate(limits.bytes_per_second, 'B')} read and {rate(limits.flops_per_second, 'FLOP')}")
    return printable(", ".join(parts))


def rate(value: float, unit: str) -> str:
    """``6739803357`` bytes -> ``6.7 GB/s``."""
    return _scaled(value, 1000, tuple(prefix + unit for prefix in ("", "k", "M", "G", "T", "P")), " ") + "/s"


def _latency_row(timing: Timing, others: list[str], limited: bool) -> tuple[str, ...]:
    low, mid, high = (value / timing.steps for value in (timing.p10_s, timing.median_s, timing.p90_s))
    limit = share_of_limit(timing.limit_share, timing.limited_by)
    return (
        printable(timing.model),
        seconds(mid),
        seconds(low, high),
        f"{timing.tokens_per_second:,.1f}" if timing.tokens_per_second < 1000 else f"{timing.tokens_per_second:,.0f}",
        *((limit,) if limited else ()),
        *(ratio(timing.speedup[o]) if o in timing.speedup and o != timing.model else NOTHING for o in others),
    )


_BOUNDS = {"bandwidth": "B/s", "compute": "FLOP/s"}


def share_of_limit(share: float | None, bound: str | None) -> str:
    """``34 % B/s``: how near to the limit that holds it up."""
    return NOTHING if share is None or bound is None else f"{100 * share:.0f} % {_BOUNDS[bound]}"


def _work_row(timing: Timing) -> tuple[str, ...]:
    assert timing.work is not None
    return (
        printable(timing.model),
        byte_count(timing.work.weight_bytes),
        byte_count(timing.work.kv_bytes),
        byte_count(timing.moved_per_token or 0),
        count(timing.work.flops),
        NOTHING if timing.memory_bytes is None else byte_count(timing.memory_bytes),
    )
