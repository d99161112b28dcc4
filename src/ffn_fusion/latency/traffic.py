"""The least work of a model in a prefill or a decode step: bytes of weights and KV cache, and FLOPs.

``latency.work`` counts it; the bytes of the weights, and of a number in the KV cache, depend on the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.timing import Work
from ffn_fusion.latency.work import (
    ITEM_BYTES,
    Setting,
    Step,
    SubBlock,
    SubBlockWork,
    head_work,
    model_work,
    sub_block_work,
)

_PRECISION = "fp32"  # any of one size for all numbers: bytes over it are how many there are
_SIZE = ITEM_BYTES[_PRECISION]


@dataclass(frozen=True)
class Traffic:
    """A model in an engine's memory.

    Args:
        weight_bytes: bytes of all weights that a step reads. The embedding isn't among them unless it is the head as
            well: a step reads only one row of it per token.
        kv_size: bytes of a number in the KV cache.
        part: what is counted: a sub-block of such a model, or its head; None: all of it.
    """

    spec: ModelSpec
    weight_bytes: float
    kv_size: float
    part: SubBlock | Literal["head"] | None = None

    @classmethod
    def of(cls, spec: ModelSpec, element_size: float) -> Traffic:
        """Return the traffic of a model whose weights and KV cache have elements of one size in bytes."""
        works = model_work(spec, _setting(1), Step())
        read = sum(work.weight_bytes * count for work, count in works) / _SIZE + spec.hidden_size  # the final norm's
        return cls(spec, element_size * read, element_size)

    def prefill(self, batch: int, context: int) -> Work:
        """Return the work of ``batch`` prompts of ``context`` tokens, of which the head reads the last."""
        return self._work(batch, Step(tokens=context))

    def step(self, batch: int, length: float) -> Work:
        """Return the work of one more token per sequence, which attends to ``length`` tokens, itself included."""
        looking, alone = (self._work(batch, Step(past=past)) for past in (length - 1, 0))
        return looking.model_copy(update={"kv_bytes": looking.kv_bytes + alone.kv_bytes})  # read, and one written

    def _work(self, batch: int, step: Step) -> Work:
        works = self._works(_setting(batch), step)
        return Work(
            weight_bytes=self.weight_bytes,
            kv_bytes=self.kv_size * sum(work.kv_bytes * count for work, count in works) / _SIZE,
            flops=sum((work.matmul_flops + work.attention_flops) * count for work, count in works),
        )

    def _works(self, setting: Setting, step: Step) -> Sequence[tuple[SubBlockWork, int]]:
        if self.part is None:
            return model_work(self.spec, setting, step)
        if self.part == "head":
            return [(head_work(self.spec, setting, step), 1)]
        return [(sub_block_work(self.spec, self.part, setting, step), 1)]


def _setting(batch: int) -> Setting:
    return Setting(batch=batch, weights=_PRECISION, kv=_PRECISION)
