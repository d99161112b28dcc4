"""Speculative decoding: a small draft model proposes tokens, and the model checks all of them in one step. No torch.

If k tokens are proposed and each is accepted independently with probability p, a round yields (1 - p^(k+1)) / (1 - p)
tokens (Leviathan et al., arXiv 2211.17192, equation 1). It takes k steps of the draft and one of the model over k + 1
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.hardware import Parts, Prediction, decode_step, predict, step_seconds
from ffn_fusion.latency.machines import Machine
from ffn_fusion.latency.work import Setting, Step, kv_bytes, weight_bytes


@dataclass(frozen=True)
class Draft:
    """A draft model that proposes ``length`` tokens per round, each accepted with probability ``acceptance``.

    It runs in the model's precision, on as many of its devices as can share the draft's heads evenly.
    """

    spec: ModelSpec
    length: int = 4
    acceptance: float = 0.7

    def setting(self, of_model: Setting) -> Setting:
        """Return the draft's own setting beside a model in this one."""
        return replace(of_model, devices=gcd(*self.spec.head_counts, of_model.devices))

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"a draft of {self.length} tokens", "let it propose at least 1")
        if not 0 <= self.acceptance <= 1:
            raise UsageError(f"an acceptance of {self.acceptance:g}", "give a probability between 0 and 1")


def tokens_per_round(length: int, acceptance: float) -> float:
    """Return the mean number of tokens per round: accepted ones, and the one that the model itself adds."""
    return sum(acceptance**i for i in range(length + 1))


def predict_drafted(machine: Machine, spec: ModelSpec, setting: Setting, draft: Draft) -> Prediction:
    """Predict as :func:`ffn_fusion.latency.hardware.predict` does, with a draft. ``decode`` is a round.

    Raises:
        UsageError: see there.
    """
    plain, own = predict(machine, spec, setting), draft.setting(setting)
    decode = _round(machine, spec, setting, draft)
    return replace(
        plain,
        prefill=plain.prefill + step_seconds(machine, draft.spec, own, Step(tokens=setting.context)),
        decode=decode,
        token=decode.total / tokens_per_round(draft.length, draft.acceptance),
        weight_bytes=plain.weight_bytes + weight_bytes(draft.spec, own),
        kv_bytes=plain.kv_bytes + kv_bytes(draft.spec, own),
    )


def _round(machine: Machine, spec: ModelSpec, setting: Setting, draft: Draft) -> Parts:
    own = draft.setting(setting)
    proposing = step_seconds(machine, draft.spec, own, decode_step(own)).times(draft.length)
    return proposing + step_seconds(machine, spec, setting, decode_step(setting, draft.length + 1))
