"""What a distillation did and gained, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ffn_fusion.report.tables import NOTHING, Grid, small


def trainings(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every training from its parent that a child went through, oldest first: earlier ones, then this one's stages.

    Args:
        record: ``distillation.json``.
    """
    earlier = trainings(record["before"]) if record.get("before") else []
    return [*earlier, *(record.get("stages") or ([] if "how" in record else [record]))]


def trained_further(record: Mapping[str, Any]) -> list[str]:
    """What other tools trained of a child, in their own words, oldest first."""
    earlier = trained_further(record["before"]) if record.get("before") else []
    return [*earlier, *([record["how"]] if "how" in record else [])]


def distillation_grid(record: Mapping[str, Any]) -> Grid | None:
    """KL to the parent and perplexity on windows that took no part, text by text, before and after; None where none
    were kept back.

    Args:
        record: ``distillation.json``.
    """
    rows = tuple(
        (
            row["text"],
            f"{row['tokens']:,}",
            small(row["kl"]["before"]),
            small(row["kl"]["after"]),
            *(f"{row['perplexity'][name]:.2f}" for name in ("parent", "before", "after")),
        )
        for row in record.get("gains", ())
    )
    columns = ("text", "tokens", "KL before", "KL after", "perplexity parent", "perplexity before", "perplexity after")
    return Grid(columns, rows, words=1) if rows else None


def stages_grid(record: Mapping[str, Any]) -> Grid:
    """Every training: its text, its settings, and the KL to the parent before and after it, a mean over texts.

    Args:
        record: ``distillation.json``.
    """
    rows = tuple(
        (
            str(number),
            objective_words(stage["settings"]["objective"]),
            f"{stage['tokens']:,}",
            f"{stage['context']:,}",
            f"{stage['steps']:,} × {stage['settings']['batch']}",  # noqa: RUF001
            f"{stage['settings']['learning_rate']:g}",
            _fall(stage.get("history", ())),
            *(_mean_kl(stage.get("gains", ()), when) for when in ("before", "after")),
        )
        for number, stage in enumerate(trainings(record), 1)
    )
    columns = ("stage", "minimised", "tokens", "context", "steps × windows", "learning rate")  # noqa: RUF001
    return Grid((*columns, "loss, first → last", "KL before", "KL after"), rows, words=2)


def objective_words(objective: Mapping[str, Any]) -> str:
    """``KL + cosine``, ``0.5 reverse KL + 0.1 LM, temperature 2``."""
    divergence = {"forward": "KL", "reverse": "reverse KL", "js": "JS"}[objective["direction"]]
    names = {"kl": divergence, "cosine": "cosine", "lm": "LM"}
    terms = [
        (f"{objective[key]:g} " if objective[key] != 1 else "") + name for key, name in names.items() if objective[key]
    ]
    heat = objective["temperature"]
    return " + ".join(terms) + (f", temperature {heat:g}" if heat != 1 and objective["kl"] else "")


def _fall(history: Sequence[Mapping[str, Any]]) -> str:
    return f"{history[0]['loss']:.3g} → {history[-1]['loss']:.3g}" if history else NOTHING


def _mean_kl(gains: Sequence[Mapping[str, Any]], when: str) -> str:
    return small(sum(row["kl"][when] for row in gains) / len(gains)) if gains else NOTHING
