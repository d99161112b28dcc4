"""What an engine says of a text that it generated: its tokens, how long it took, what a draft was good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ffn_fusion.errors import CheckError


@dataclass(frozen=True)
class Generated:
    """Tokens behind a prompt. The first comes with the prompt; the others take ``decode_s`` seconds.

    Args:
        drafted: tokens that were proposed by a draft, of which so many were accepted.
    """

    tokens: tuple[int, ...]
    prompt_s: float
    decode_s: float
    drafted: int = 0
    accepted: int = 0

    @property
    def decoded(self) -> int:
        """Tokens behind the first."""
        return len(self.tokens) - 1

    @property
    def steps(self) -> int:
        """Of the model itself: each brings a token, and those of the draft that it accepts."""
        return self.decoded - self.accepted


def read_generated(answer: Mapping[str, Any]) -> Generated:
    """llama-server's answer to a completion.

    Raises:
        CheckError: it tells no tokens or times, or too few tokens to time.
    """
    try:
        timings = answer["timings"]
        found = Generated(
            tokens=tuple(int(token) for token in answer["tokens"]),
            prompt_s=timings["prompt_ms"] / 1e3,
            decode_s=timings["predicted_ms"] / 1e3,
            drafted=int(timings.get("draft_n", 0)),
            accepted=int(timings.get("draft_n_accepted", 0)),
        )
    except (KeyError, TypeError) as error:
        raise CheckError("llama.cpp tells no tokens or no times of a text", "try a newer llama-server") from error
    if found.decoded < 1 or found.steps < 1:
        raise CheckError(f"llama.cpp generated {len(found.tokens)} tokens: too few to be timed", "ask for more of them")
    return found
