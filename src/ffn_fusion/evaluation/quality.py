"""Quality: how far each model is from the parent, text by text. Plain data, JSON, no torch."""

from __future__ import annotations

from ffn_fusion.settings import Frozen


class Score(Frozen):
    """One model on one text; errors are standard errors over windows; KL in nats a token, agreement a share."""

    perplexity: float
    perplexity_error: float
    loss: float
    kl: float
    kl_error: float
    agreement: float
    agreement_error: float


class TextScores(Frozen):
    """All models on one held-out text. ``scores`` in the order they're shown: parent, pruned, fused, then controls."""

    text: str
    windows: int
    tokens: int
    context: int
    scores: dict[str, Score]


class Control(Frozen):
    """A child of the same size that another rule chose (``analysis.rules``), to compare with."""

    name: str
    meaning: str
    dropped: str
    runs: str


class Quality(Frozen):
    """``texts`` one by one; ``controls`` says what the further columns are."""

    texts: tuple[TextScores, ...]
    controls: tuple[Control, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.texts[0].scores)
