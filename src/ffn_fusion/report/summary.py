"""What a report says first: one sentence on what was done, and the figures that matter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from ffn_fusion.blueprint import NAMES, PARTS, Blueprint
from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.report.formats import printable, times
from ffn_fusion.report.model_grids import sequential_steps

if TYPE_CHECKING:
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.latency.timing import Latency, Timing

MODELS = ("parent", "pruned", "fused", "distilled")


@dataclass(frozen=True)
class KeyFigure:
    value: str
    label: str
    note: str = ""


def sentence(blueprint: Blueprint) -> str:
    """What was done, in one sentence."""
    dropped, runs, merged = blueprint.dropped_attentions, blueprint.runs, blueprint.merged
    blocks = len(blueprint.parent.blocks)
    others: dict[tuple[str, str], list[int]] = {}  # what became of sub-blocks that were changed each by itself
    for block, part in product(blueprint.blocks, PARTS):
        kind = block.part(part)
        if kind.changes and len(kind.sources) == 1:
            others.setdefault((NAMES[part], kind.fate), []).extend(kind.sources)
    if not dropped and not runs and not merged and not others:
        return f"Nothing was changed: the child has the parent's {blocks} blocks."
    done = []
    if dropped:
        were = "was" if len(dropped) == 1 else "were"
        which = _named("block", format_blocks(dropped))
        done.append(f"{len(dropped)} of {attentions(blueprint)} attentions {were} dropped ({which})")
    if merged:
        count = sum(len(block.attention.sources) for block in blueprint.blocks if block.side_by_side)
        done.append(f"{count} attentions were put side by side ({_named('run', format_runs(merged))})")
    if runs:
        wide = "one wide FFN" if len(runs) == 1 else f"{len(runs)} wide FFNs"
        done.append(f"{fused_ffns(blueprint)} FFNs were fused into {wide} ({_named('run', format_runs(runs))})")
    for (name, fate), blocks_ in others.items():
        were = f"{name} was" if len(blocks_) == 1 else f"{name}s were"
        done.append(f"{len(blocks_)} {were} {fate} ({_named('block', format_blocks(blocks_))})")
    return f"{' and '.join(done)}: {blocks} blocks became {len(blueprint.kept_blocks)}."


def _named(what: str, which: str) -> str:
    """``block 8``, ``blocks 5-8``, ``run 5-7``, ``runs 5-7, 17-19``."""
    several = "," in which or (what == "block" and "-" in which)
    return f"{what}{'s' if several else ''} {which}"


def attentions(blueprint: Blueprint) -> int:
    return sum(block.attention is not None for block in blueprint.parent.blocks)


def fused_ffns(blueprint: Blueprint) -> int:
    """Parent FFNs that are part of a fused one."""
    return sum(len(block.ffn.sources) for block in blueprint.blocks if len(block.ffn.sources) > 1)


def key_figures(blueprint: Blueprint, quality: Quality | None, latency: Latency | None) -> list[KeyFigure]:
    dropped, runs = blueprint.dropped_attentions, blueprint.runs
    before, after = sequential_steps(blueprint)
    figures = []
    if dropped:
        figures.append(_dropped(blueprint))
    if merged := blueprint.merged:
        count = sum(len(block.attention.sources) for block in blueprint.blocks if block.side_by_side)
        which = _named("run", format_runs(merged))
        figures.append(KeyFigure(f"{count} → {len(merged)}", "attentions side by side", which))
    if runs:
        figures.append(
            KeyFigure(f"{fused_ffns(blueprint)} → {len(runs)}", "FFNs fused", _named("run", format_runs(runs)))
        )
    fewer = f"{100 * (before - after) / max(before, 1):.0f} % fewer"
    figures.append(KeyFigure(f"{before} → {after}", "sub-blocks in sequence", fewer))
    if latency and (decode := _decode(latency)):
        figures.append(_speed(decode))
    if quality:
        figures.append(_perplexity(quality))
    return figures


def _dropped(blueprint: Blueprint) -> KeyFigure:
    dropped = blueprint.dropped_attentions
    value = f"{len(dropped)} of {attentions(blueprint)}"
    return KeyFigure(value, "attentions dropped", _named("block", format_blocks(dropped)))


def _decode(latency: Latency) -> Timing | None:
    """The child's decoding at the smallest batch: what one user feels."""
    child = next((model for model in reversed(MODELS) if model in latency.models), None)
    timings = [t for t in latency.timings if t.model == child and t.phase == "decode" and "parent" in t.speedup]
    return min(timings, key=lambda timing: timing.batch, default=None)


def _speed(timing: Timing) -> KeyFigure:
    speed = timing.speedup["parent"]
    low, high = (speed * timing.median_s / edge for edge in (timing.p90_s, timing.p10_s))
    note = f"its own runs, p10–p90: {low:.2f}–{times(high)}"  # noqa: RUF001
    return KeyFigure(times(speed), f"decode speed, batch {timing.batch}", note)


def _perplexity(quality: Quality) -> KeyFigure:
    text = quality.texts[0]
    models = [model for model in MODELS if model in text.scores]
    if "distilled" in models and "pruned" in models:
        models.remove("pruned")  # four figures don't fit; what it came from counts more
    shown = [(model, text.scores[model]) for model in models]
    value = " → ".join(f"{score.perplexity:.1f}" for _, score in shown)
    names = " → ".join(model for model, _ in shown)
    errors = ", ".join(f"{score.perplexity_error:.2f}" for _, score in shown)
    return KeyFigure(value, f"perplexity, {names}", f"on {printable(text.text)}; standard errors {errors}")
