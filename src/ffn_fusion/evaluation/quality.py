"""Quality: how far each model is from the parent, text by text and task by task. Plain data, JSON, no torch."""

from __future__ import annotations

from ffn_fusion.settings import Frozen

PARENT = "parent"
"""What the model that all others are compared with is called."""


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


class TaskScore(Frozen):
    """One model on one task.

    Args:
        error: standard error over examples; None where there is a single example.
        difference: score minus the parent's, on the same examples; None for the parent itself.
        difference_error: standard error of that difference, example by example, which is smaller than the two errors
            together since both models find the same examples hard; None for metrics that aren't means over examples.
    """

    score: float
    error: float | None = None
    difference: float | None = None
    difference_error: float | None = None


class TaskScores(Frozen):
    """All models by one metric of one task, or of a group of tasks; ``scores`` in the order of ``TextScores``.

    Args:
        task: its name in the lm-evaluation-harness, or in its YAML file.
        metric: the metric's name, like ``acc_norm``; followed by a comma and the filter of the answers if it has one.
        few_shot: solved examples before each example.
        group: the group of tasks that this one is a part of, if it is.
        dataset: its id on the hub; None if it is in files.
    """

    task: str
    metric: str
    higher_is_better: bool
    examples: int
    few_shot: int
    scores: dict[str, TaskScore]
    group: str | None = None
    dataset: str | None = None


class Control(Frozen):
    """A child of the same size that another rule chose (``analysis.rules``), to compare with."""

    name: str
    meaning: str
    dropped: str
    runs: str


class Quality(Frozen):
    """``texts`` and ``tasks`` one by one; ``controls`` says what the further columns are."""

    texts: tuple[TextScores, ...]
    controls: tuple[Control, ...] = ()
    tasks: tuple[TaskScores, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.texts[0].scores if self.texts else self.tasks[0].scores)
