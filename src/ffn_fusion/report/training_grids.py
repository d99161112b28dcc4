"""What repair and distillation did and gained, from their records ``repairs.json`` and ``distillation.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.report.formats import perplexity
from ffn_fusion.report.grid import Column, Grid, kl_column, words

Record = Mapping[str, Any]

_PARTS = {"attention": "attention", "ffn": "FFN"}


# ---- repair


def repairs_grid(record: Record) -> Grid:
    """Every place that was solved: lambda, the linear solve's residual, and the error left on held-out tokens."""
    return Grid.of(
        record["places"],
        (words("child block"), lambda row: row["block"]),
        (words("why"), lambda row: row["why"]),
        (words("solved"), lambda row: _PARTS[row["part"]]),
        (Column("width"), lambda row: row["width"]),
        (Column("lambda", "{:g}".format), lambda row: row["lambda"]),
        (Column("residual", "{:.0e}".format), lambda row: row["residual"]),
        (
            Column("error left", str),
            lambda row: f"{row['held_out_error']:.1%}" if row["reason"] is None else f"kept: {row['reason']}",
        ),
        notes=[
            f"Solved on {record['calibration']['tokens']:,} tokens. Error left: squared distance to the parent's state "
            "on held-out tokens, as a share of what it was.",
            *filter(None, [mapped_inputs(record)]),
        ],
    )


def mapped_inputs(record: Record) -> str | None:
    """Say whose inputs were mapped, and how far from the parent's they are; None where none were."""
    errors = {int(i): error for row in record["places"] for i, error in row.get("inputs", {}).items()}
    if not errors:
        return None
    blocks, left = format_blocks(sorted(errors)), [errors[i] for i in sorted(errors)]
    span = f"{min(left):.0%}" if len(left) == 1 else f"{min(left):.0%} to {max(left):.0%}"
    return (
        f"The input of the FFN of block{'s' * (len(left) > 1)} {blocks} was mapped to its own in the parent: "
        f"{span} of the squared distance is left on held-out tokens."
    )


def solved_projections(record: Record) -> str | None:
    """Say how many output projections of which kind have new weights; None where every old weight was kept.

    A bias that was solved with its projection is no projection of its own.
    """
    changed = [row["part"] for row in record["places"] if row["reason"] is None]
    counts = [(changed.count(part), word) for part, word in _PARTS.items() if part in changed]
    if not counts:
        return None
    kinds = " and ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts)
    one = len(changed) == 1
    biases = any(name.endswith(".bias") for name in record["files"])
    with_bias = " with its bias" if one else " with their biases"
    return f"The output projection{' of' if one else 's of'} {kinds}{with_bias * biases} {'was' if one else 'were'}"


def from_library(record: Record) -> str | None:
    """Say how many sub-blocks came from a library, and how they were made there; None where none did."""
    rows = record.get("library", ())
    if not rows:
        return None
    counts = {"solved": "solved in closed form", "trained": "trained"}
    made = [f"{count} {word}" for how, word in counts.items() if (count := sum(row["how"] == how for row in rows))]
    choices = "1 sub-block choice" if len(rows) == 1 else f"{len(rows)} sub-block choices"
    return f"{choices} came from a library, {' and '.join(made)}, each by itself on the parent's own states."


_TOO_LITTLE = "Not measured: there was too little text to hold some out."


def gains_grid(record: Record) -> Grid:
    """KL to the parent before and after the repair, text by text, where text was held out."""
    names = ("pruned", "unrepaired", "repaired")
    about = "Windows that took no part in the repair. Pruned: the same attentions dropped, nothing fused."
    return Grid.of(
        record.get("gains", ()),
        (words("KL to the parent on"), lambda row: row["text"]),
        (Column("tokens"), lambda row: row["tokens"]),
        *((kl_column(name), lambda row, name=name: row[name]) for name in names),
        notes=[about if record.get("gains") else _TOO_LITTLE],
    )


# ---- distillation


def trainings(record: Record) -> list[Record]:
    """Every training from its parent that a child went through, oldest first: earlier ones, then this one's stages."""
    earlier = trainings(record["before"]) if record.get("before") else []
    return [*earlier, *(record.get("stages") or ([] if "how" in record else [record]))]


def trained_further(record: Record) -> list[str]:
    """What other tools trained of a child, in their own words, oldest first."""
    earlier = trained_further(record["before"]) if record.get("before") else []
    return [*earlier, *([record["how"]] if "how" in record else [])]


def distillation_grid(record: Record) -> Grid:
    """KL to the parent and perplexity before and after, text by text, where text was held out."""
    steps = f"Trained on {record['tokens']:,} tokens in {record['steps']:,} steps. " if "steps" in record else ""
    return Grid.of(
        record.get("gains", ()),
        (words("text"), lambda row: row["text"]),
        (Column("tokens"), lambda row: row["tokens"]),
        *((kl_column(f"KL {when}"), lambda row, when=when: row["kl"][when]) for when in ("before", "after")),
        *(
            (Column(f"perplexity {name}", perplexity), lambda row, name=name: row["perplexity"][name])
            for name in ("parent", "before", "after")
        ),
        notes=[f"{steps}KL is to the parent, on windows that took no part." if record.get("gains") else _TOO_LITTLE],
    )


def stages_grid(record: Record) -> Grid:
    """Every training: its text, its settings, and the mean KL to the parent over texts before and after it."""
    return Grid.of(
        enumerate(trainings(record), 1),
        (words("stage"), lambda pair: pair[0]),
        (words("minimised"), lambda pair: objective_words(pair[1]["settings"]["objective"])),
        (Column("tokens"), lambda pair: pair[1]["tokens"]),
        (Column("context"), lambda pair: pair[1]["context"]),
        (Column("steps × windows", str), lambda pair: f"{pair[1]['steps']:,} × {pair[1]['settings']['batch']}"),  # noqa: RUF001
        (Column("learning rate", "{:g}".format), lambda pair: pair[1]["settings"]["learning_rate"]),
        (Column("loss, first → last", str), lambda pair: _fall(pair[1].get("history", ()))),
        *((kl_column(f"KL {when}"), lambda pair, when=when: _mean_kl(pair[1], when)) for when in ("before", "after")),
        notes=["KL is to the parent, the mean over held-out texts. Steps × windows: optimiser steps, windows in each."],  # noqa: RUF001
    )


def objective_words(objective: Record) -> str:
    """``KL + cosine``, ``0.5 reverse KL + 0.1 LM, temperature 2``."""
    divergence = {"forward": "KL", "reverse": "reverse KL", "js": "JS"}[objective["direction"]]
    names = {"kl": divergence, "cosine": "cosine", "lm": "LM"}
    terms = [
        (f"{objective[key]:g} " if objective[key] != 1 else "") + name for key, name in names.items() if objective[key]
    ]
    heat = objective["temperature"]
    return " + ".join(terms) + (f", temperature {heat:g}" if heat != 1 and objective["kl"] else "")


def _fall(history: Sequence[Record]) -> str | None:
    return f"{history[0]['loss']:.3g} → {history[-1]['loss']:.3g}" if history else None


def _mean_kl(stage: Record, when: str) -> float | None:
    gains = stage.get("gains", ())
    return sum(row["kl"][when] for row in gains) / len(gains) if gains else None
