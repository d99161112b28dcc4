"""How good children are: scores on held-out text, the controls beside them, and rules that chose differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ffn_fusion.blueprint.ranges import format_blocks, format_runs
from ffn_fusion.report.formats import Measured, increase, kl, perplexity, share
from ffn_fusion.report.grid import MODEL, Column, Grid, kl_column, words

if TYPE_CHECKING:  # numpy stays out of a plain table on a terminal
    from ffn_fusion.analysis.changes import ChangeScores
    from ffn_fusion.analysis.evidence import Damage
    from ffn_fusion.analysis.rules import Compared
    from ffn_fusion.evaluation.quality import Control, Quality, Score, TextScores

LOSS = Column("loss increase", increase)
AGREEMENT = Column("same token", share, "%")
HIDDEN_DISTANCE = Column("hidden distance", kl)
SIDE_BY_SIDE = words("side by side", optional=True)

_NO_CONTROLS = ("parent", "pruned", "fused", "distilled")


def damage_kl(damage: Damage | Score) -> Measured:
    return Measured(damage.kl, damage.kl_error)


def merged_runs(runs: Sequence[tuple[int, int]]) -> str | None:
    """The cell of ``SIDE_BY_SIDE``."""
    return format_runs(runs) if runs else None


def quality_grid(quality: Quality) -> Grid:
    """Every model on every text, text by text; errors are standard errors over windows."""
    rows = [_Scored(text, name, score) for text in quality.texts for name, score in text.scores.items()]
    contexts = " or ".join(f"{context:,}" for context in dict.fromkeys(text.context for text in quality.texts))
    return Grid.of(
        rows,
        (words("text"), lambda row: f"{row.text.text}, {row.text.tokens:,} tokens"),
        (MODEL, lambda row: row.name),
        (Column("perplexity", perplexity), lambda row: Measured(row.score.perplexity, row.score.perplexity_error)),
        (LOSS, lambda row: row.score.loss - row.parent.loss if row.parent else None),
        (kl_column(), lambda row: damage_kl(row.score) if row.name != "parent" else None),
        (AGREEMENT, lambda row: row.agreement),
        rule=lambda row: row.name == row.first_control,
        notes=[
            f"± is the standard error over windows of {contexts} tokens. KL is to the parent, and same token how often "
            "the most likely next token is the parent's. Pruned: the same attentions dropped, nothing fused."
        ],
        grouped=True,
    )


class _Scored:
    """A model on a text, beside the parent on the same text."""

    def __init__(self, text: TextScores, name: str, score: Score) -> None:
        self.text, self.name, self.score = text, name, score
        parent = text.scores.get("parent")
        self.parent = None if parent is score else parent
        self.agreement = None if parent is score else Measured(score.agreement, score.agreement_error)
        others = list(text.scores)
        self.first_control = next((n for n in others[1:] if n not in _NO_CONTROLS), None)


def controls_grid(controls: Sequence[Control]) -> Grid:
    """What the controls are."""
    return Grid.of(
        controls,
        (MODEL, lambda control: control.name),
        (words("what it is"), lambda control: control.meaning),
        (words("attentions dropped"), lambda control: control.dropped),
        (words("FFNs fused"), lambda control: control.runs),
    )


def changes_grid(scores: ChangeScores) -> Grid:
    """Each change of a child alone in its parent, the most harmful first, and the whole child in the last row."""
    ranked = sorted(scores.changes, key=lambda score: -score.damage.kl)
    rows = [(format_runs([(s.first, s.last)]), s.change, s.damage) for s in ranked]
    rows.append(("all", "the whole child", scores.whole))
    return Grid.of(
        rows,
        (words("blocks"), lambda row: row[0]),
        (words("change, alone in the parent"), lambda row: row[1]),
        (kl_column(), lambda row: damage_kl(row[2])),
        (LOSS, lambda row: row[2].loss_increase),
        (AGREEMENT, lambda row: row[2].agreement),
        (HIDDEN_DISTANCE, lambda row: row[2].hidden_distance),
        notes=[f"The changes' own KLs add up to {kl(scores.summed_kl)}. ± is the standard error over windows."],
    )


def compared_grid(compared: Sequence[Compared]) -> Grid:
    """What the exact programme and other rules chose at the same size."""
    return Grid.of(
        compared,
        (words("chosen by"), lambda row: row.name),
        (words("attentions dropped"), lambda row: format_blocks(row.dropped)),
        (words("FFNs fused"), lambda row: format_runs(row.runs)),
        (SIDE_BY_SIDE, lambda row: merged_runs(row.merged)),
        (kl_column("summed KL"), lambda row: row.damage),
        title="Other rules at the same size",
        notes=["–: not every run in it was measured."] if any(row.damage is None for row in compared) else [],  # noqa: RUF001
    )
