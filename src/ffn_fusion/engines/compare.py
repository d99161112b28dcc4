"""A child in an engine against the same child in transformers, both in float32: logits, likeliest tokens, text."""

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
"""Largest difference of log-probabilities, relative to the largest logit, that is rounding in float32. Seen: 1e-6 in
vLLM, 2e-6 on real weights and 1e-3 on random ones (which lie closer together) in llama.cpp."""

FLOOR = -80.0
"""Log-probabilities below are taken for this one: llama.cpp tells e^x in float32, which ends not far below."""

LIKELIEST = 100
NEW = 16

ENGINES: Mapping[Engine, Ask] = {"vllm": vllm_answers, "llama.cpp": llama_cpp_answers}
"""Engines that are run from here beside transformers. One more is an entry more."""


@dataclass(frozen=True)
class Comparison:
    """How far an engine is from transformers.

    Args:
        error: largest difference of log-probabilities, relative to the largest logit.
        agreement: share of places with the same likeliest token.
        lead: how far ahead transformers' token was of the engine's where their texts part (the largest such lead,
            relative to the largest logit); 0 where all texts are the same.
        same_text: share of prompts that are followed by the same tokens.
    """

    error: float
    agreement: float
    lead: float
    same_text: float

    @property
    def ok(self) -> bool:
        """Texts may part only where two tokens are as good as equally likely. False if anything isn't a number."""
        return self.error <= TOLERANCE and self.lead <= 2 * TOLERANCE


def parse_runnable(name: str) -> Engine:
    """An engine by name that can be run from here, transformers among them.

    Raises:
        UsageError: it can't, or there's no such engine.
    """
    found = parse_engines([name])
    if len(found) != 1 or found[0] not in (*ENGINES, "transformers"):
        raise UsageError(f"{name} can't be run from here", f"can be: transformers, {', '.join(ENGINES)}")
    return found[0]


def verify_engine(folder: Path, engine: Engine, ids_NT: Tensor, tokens: str, program: Path | None = None) -> Finding:
    """Whether ``engine`` computes of the child in ``folder`` what transformers does.

    Args:
        ids_NT: prompts to run both on; ``tokens`` says what they are.
        program: where the engine is: vLLM's Python, llama.cpp's llama-server. Default: where it's usually found.

    Raises:
        MissingExtraError: the engine isn't there. CheckError: it can't load the child.
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
    """What an engine says against transformers' logits of every place, and of its own greedy text."""
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
    """An engine's log-probabilities less those of these logits, [N, T, K]."""
    want_NTK = logits_NTV.log_softmax(-1).gather(-1, have.ids_NTK)
    return have.logprobs_NTK.clamp(min=FLOOR) - want_NTK.clamp(min=FLOOR)


def _lead(ours_S: Tensor, theirs_S: Tensor, logits_SV: Tensor) -> float:
    """How much likelier our token was than theirs where the texts part; what comes after has another beginning."""
    for ours, theirs, logits_V in zip(ours_S, theirs_S, logits_SV, strict=True):
        if ours != theirs:
            return float(logits_V[ours] - logits_V[theirs])
    return 0.0


def _texts(found: Comparison) -> str:
    if found.same_text == 1:
        return f"the same {NEW} tokens of greedy text"
    ties = "where two tokens are as good as equally likely" if found.lead <= 2 * TOLERANCE else "beyond rounding"
    return f"{1 - found.same_text:.0%} of greedy texts differ, {ties}"
