"""What an engine is asked about a checkpoint, and its answers: log-probabilities and text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """An engine's answers to N prompts of T tokens, which it continues by S tokens.

    Args:
        ids_NTK: at every position the K most likely next tokens, the most likely first.
        logprobs_NTK: their log-probabilities, in float32.
        new_NS: the tokens that follow each prompt in greedy search.
    """

    ids_NTK: Tensor
    logprobs_NTK: Tensor
    new_NS: Tensor


class Ask(Protocol):
    """Run an engine on the checkpoint in ``folder``, in float32.

    Args:
        ids_NT: the prompts.
        new: S, the number of tokens that follow each prompt.
        likeliest: K, the number of tokens at each position.
        program: where the engine is; None: in its usual place.

    Raises:
        MissingExtraError: the engine isn't installed. CheckError: it can't load the checkpoint, or failed.
    """

    def __call__(self, folder: Path, ids_NT: Tensor, new: int, likeliest: int, program: Path | None) -> Answers: ...
