"""Teachers: the parent itself, run beside the child, or its cached distributions.

Shapes: B windows, T tokens, D hidden, V vocabulary; token t predicts token t + 1, so there are T - 1 rows per window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.objective import HiddenTarget, Target
from ffn_fusion.distillation.sharding import load_sharded, whole
from ffn_fusion.distillation.states import seen
from ffn_fusion.modeling.causal import HeadOutput, head_of
from ffn_fusion.modeling.load import load_model


@dataclass(frozen=True)
class Lesson:
    """What the teacher provides for some windows: its distributions (None if not needed) and its states at matched
    depths.
    """

    target: Target | None
    states: Sequence[Tensor]


class Teacher(Protocol):
    def teach(self, ids_BT: Tensor, windows: Sequence[int]) -> Lesson:
        """Return the lesson for windows given by tokens and numbers; rows are those of all windows, concatenated."""


class NoTeacher:
    """A teacher for the language-model loss alone."""

    def teach(self, ids_BT: Tensor, windows: Sequence[int]) -> Lesson:
        return Lesson(None, ())


class OnlineTeacher:
    """The parent as a transformers model, run beside the child.

    Args:
        blocks: the blocks after which its states are captured.
        dtype: of its weights and its computation.
        shard: distribute its weights over the processes.
    """

    def __init__(
        self, parent: Checkpoint, blocks: Sequence[int], dtype: torch.dtype, device: str, *, shard: bool = False
    ) -> None:
        if shard:
            model = load_sharded(parent.own_folder("transformers"), dtype, device, learns=False)
        else:
            model = load_model(parent, dtype, device)
        self._model = model.eval().requires_grad_(False)
        self._blocks = tuple(blocks)

    @torch.no_grad()
    def teach(self, ids_BT: Tensor, windows: Sequence[int]) -> Lesson:
        with seen(self._model, self._blocks) as states:
            self._model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
        assert states.last is not None
        return Lesson(
            HiddenTarget(rows(states.last), whole(head_of(self._model).weight), HeadOutput.of(self._model.config)),
            states.blocks,
        )


def rows(x_BTD: Tensor) -> Tensor:
    """Return the states that predict a token: [B, T, D] -> [B * (T - 1), D]."""
    return x_BTD[:, :-1].flatten(0, 1)
