"""A text that llama-server generated: its tokens, the time it took, and how many tokens a draft contributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffn_fusion.engines.llama_cpp import LlamaServer
from ffn_fusion.errors import CheckError


@dataclass(frozen=True)
class Generated:
    """The tokens that follow a prompt. The first comes with the prompt; the others take ``decode_s`` seconds.

    Attributes:
        drafted: how many tokens a draft proposed.
        accepted: how many of those the model accepted.
    """

    tokens: tuple[int, ...]
    prompt_s: float
    decode_s: float
    drafted: int = 0
    accepted: int = 0

    @property
    def decoded(self) -> int:
        """The number of tokens after the first."""
        return len(self.tokens) - 1

    @property
    def steps(self) -> int:
        """The decode steps of the model: each brings one token, and the draft's tokens that it accepts."""
        return self.decoded - self.accepted


def generate(llama: LlamaServer, ids: Sequence[int], new: int) -> Generated:
    """Generate ``new`` tokens after these by greedy search, also past the end of a text."""
    asked = {
        "prompt": list(ids),
        "n_predict": new,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
    }
    return read_generated(llama.ask("completion", asked))


def read_generated(answer: Mapping[str, Any]) -> Generated:
    """Read llama-server's answer to a completion.

    Raises:
        CheckError: it has no tokens or times, or too few tokens to time.
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
