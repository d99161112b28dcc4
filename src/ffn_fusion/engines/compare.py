"""Compare a child in an engine with the same child in transformers, both in float32: logits, top tokens and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.engines.answers import Answers, Ask
from ffn_fusion.engines.llama_cpp import llama_cpp_answers
from ffn_fusion.engines.vllm import vllm_answers
from ffn_fusion.errors import UsageError
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.portability.rule import Engine, parse_engines
from ffn_fusion.portability.verify import Finding

TOLERANCE = 2e-3
"""Largest difference of log-probabilities, relative to the largest logit, that counts as rounding in float32. Observed:
1e-6 in vLLM; in llama.cpp 2e-6 on real weights and 1e-3 on random ones, whose logits are closer together."""

FLOOR = -80.0
"""Lower log-probabilities count as this one: llama.cpp reports e^x in float32, which ends not far below."""

LIKELIEST = 100
NEW = 16

ENGINES: Mapping[Engine, Ask] = {"vllm": vllm_answers, "llama.cpp": llama_cpp_answers}
"""Engines that can be run besides transformers."""


@dataclass(frozen=True)
class Comparison:
    """How far an engine is from transformers.

    Args:
        error: largest difference of log-probabilities, relative to the largest logit.
        agreement: share of positions with the same most likely token.
        lead: by how much transformers' token was ahead of the engine's where their texts diverge (the largest such
            lead, relative to the largest logit); 0 if all texts are the same.
        same_text: share of prompts that are continued with the same tokens.
    """

    error: float
    agreement: float
    lead: float
    same_text: float

    @property
    def ok(self) -> bool:
        """Whether texts diverge only where two tokens are almost equally likely; False if a value is NaN."""
        return self.error <= TOLERANCE and self.lead <= 2 * TOLERANCE


def parse_runnable(name: str) -> Engine:
    """Return the engine of a name, if it can be run; transformers is one.

    Raises:
        UsageError: it can't be run, or there is no such engine.
    """
    found = parse_engines([name])
    if len(found) != 1 or found[0] not in (*ENGINES, "transformers"):
        raise UsageError(f"{name} can't be run from here", f"can be: transformers, {', '.join(ENGINES)}")
    return found[0]


def verify_engine(folder: Path, engine: Engine, ids_NT: Tensor, tokens: str, program: Path | None = None) -> Finding:
    """Find out whether ``engine`` computes the same as transformers for the child in ``folder``.

    Args:
        ids_NT: prompts to run both on.
        tokens: says what the prompts are.
        program: where the engine is: vLLM's Python, llama.cpp's llama-server. Default: in its usual place.

    Raises:
        MissingExtraError: the engine isn't installed. CheckError: it can't load the child.
    """
    likeliest = min(LIKELIEST, open_folder(folder).spec.vocab_size)
    said = ENGINES[engine](folder, ids_NT, NEW, likeliest, program)
    model = load_model(folder, torch.float32)
    found = compare(said, reference.logits(model, ids_NT), reference.greedy(model, ids_NT, NEW))
    words = (
        f"in float32 against transformers on {tokens}: logits differ by {found.error:.1e} of the largest "
        f"({TOLERANCE:g} is the tolerance), {found.agreement:.1%} the same top token, {_texts(found)}"
    )
    figures = {
        "logit_error": found.error,
        "same_top_token": found.agreement,
        "same_text": found.same_text,
        "largest_lead_where_texts_part": found.lead,
    }
    return Finding(engine, found.ok, words, figures)


def compare(have: Answers, logits_NTV: Tensor, greedy_NSV: Tensor) -> Comparison:
    """Compare an engine's answers with transformers' logits at every position, and with those of its greedy text."""
    largest = float(logits_NTV.abs().max())
    text_NS = greedy_NSV.argmax(-1)
    leads = [_lead(*prompt) for prompt in zip(text_NS, have.new_NS, greedy_NSV, strict=True)]
    return Comparison(
        error=float(differences(have, logits_NTV).abs().max()) / largest,
        agreement=float((have.ids_NTK[..., 0] == logits_NTV.argmax(-1)).double().mean()),
        lead=max(leads) / largest,
        same_text=float((text_NS == have.new_NS).all(-1).double().mean()),
    )


def differences(have: Answers, logits_NTV: Tensor) -> Tensor:
    """Return an engine's log-probabilities minus those of these logits: [N, T, K]."""
    want_NTK = logits_NTV.log_softmax(-1).gather(-1, have.ids_NTK)
    return have.logprobs_NTK.clamp(min=FLOOR) - want_NTK.clamp(min=FLOOR)


def _lead(ours_S: Tensor, theirs_S: Tensor, logits_SV: Tensor) -> float:
    """Return by how much our token was ahead of theirs where the texts diverge; later tokens can't be compared."""
    for ours, theirs, logits_V in zip(ours_S, theirs_S, logits_SV, strict=True):
        if ours != theirs:
            return float(logits_V[ours] - logits_V[theirs])
    return 0.0


def _texts(found: Comparison) -> str:
    if found.same_text == 1:
        return f"the same {NEW} tokens of greedy text"
    ties = "where two tokens are almost equally likely" if found.lead <= 2 * TOLERANCE else "beyond rounding"
    return f"{1 - found.same_text:.0%} of greedy texts differ, {ties}"
