"""What an engine is asked about a checkpoint, and what it says: log-probabilities and text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """What an engine says of N prompts of T tokens, followed by S of its own choice.

    Args:
        ids_NTK: at every place the K likeliest next tokens, the likeliest first.
        logprobs_NTK: their log-probabilities, in float32.
        new_NS: the tokens that follow each prompt, the likeliest one after another (greedy search).
    """

    ids_NTK: Tensor
    logprobs_NTK: Tensor
    new_NS: Tensor


class Ask(Protocol):
    """Run an engine on the checkpoint in ``folder``, in float32.

    Args:
        ids_NT: the prompts.
        new: S, how many tokens shall follow each.
        likeliest: K, of how many tokens at each place.
        program: where the engine is; None looks where that engine is usually found.

    Raises:
        MissingExtraError: the engine isn't there. CheckError: it can't load the checkpoint, or gave up.
    """

    def __call__(self, folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers: ...
