"""Quality: how far each model is from the parent, text by text. Plain data, JSON, no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Frozen):
    """One model on one text; errors are standard errors over windows; KL in nats a token, agreement a share."""

    perplexity: float
    perplexity_error: float
    loss: float
    kl: float
    kl_error: float
    agreement: float
    agreement_error: float


class TextScores(_Frozen):
    """All models on one held-out text. ``scores`` in the order they're shown: parent, pruned, fused, then controls."""

    text: str
    windows: int
    tokens: int
    context: int
    scores: dict[str, Score]


class Control(_Frozen):
    """A child of the same size that another rule chose (``analysis.rules``), to compare with."""

    name: str
    meaning: str
    dropped: str
    runs: str


class Quality(_Frozen):
    """``texts`` one by one; ``controls`` says what the further columns are."""

    texts: tuple[TextScores, ...]
    controls: tuple[Control, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.texts[0].scores)
