"""What a model can't do without in a prefill or a decode step: bytes of weights and of KV cache, FLOPs.

Shapes: B batch, T tokens, D hidden, H heads, d head_dim, V vocabulary. Everything follows from the model's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import EMBEDDING, model_tensors, sub_block_parameters
from ffn_fusion.latency.timing import Work


@dataclass(frozen=True)
class Traffic:
    """A model as it lies in an engine's memory.

    Args:
        weight_bytes: every weight that a step reads. The embedding isn't among them unless it's the head as well: of
            it a step reads a row a token.
        kv_size: bytes of a number in the KV cache.
    """

    spec: ModelSpec
    weight_bytes: float
    kv_size: float

    @classmethod
    def of(cls, spec: ModelSpec, element_size: float) -> Traffic:
        """All in one dtype."""
        return cls(spec, element_size * read_parameters(spec), element_size)

    def prefill(self, batch: int, context: int) -> Work:
        """B prompts of T tokens, of which the head reads the last."""
        pairs = context * (context + 1) / 2
        return Work(
            weight_bytes=self.weight_bytes,
            kv_bytes=batch * context * self._kv_bytes(),
            flops=batch * (context * self._block_flops() + self._head_flops() + pairs * self._pair_flops()),
        )

    def step(self, batch: int, length: float) -> Work:
        """One token more for B sequences, each of which looks at ``length`` tokens, its own included."""
        return Work(
            weight_bytes=self.weight_bytes,
            kv_bytes=batch * (length + 1) * self._kv_bytes(),  # read, and one written
            flops=batch * (self._block_flops() + self._head_flops() + length * self._pair_flops()),
        )

    def _kv_bytes(self) -> float:
        return self.kv_size * self.spec.kv_bytes_per_token(1)

    def _block_flops(self) -> float:
        """Of a token, in the matrices of all blocks."""
        parts = (part for block in self.spec.blocks for part in (block.attention, block.ffn))
        return 2.0 * sum(sub_block_parameters(self.spec, part) for part in parts)

    def _head_flops(self) -> float:
        return 2.0 * self.spec.vocab_size * self.spec.hidden_size

    def _pair_flops(self) -> float:
        """Of a token that looks at a token: the score and the value, in all heads of all attentions."""
        attentions = sum(1 for block in self.spec.blocks if block.attention and block.attention.kind == "attention")
        return 4.0 * attentions * self.spec.heads * self.spec.head_dim


def read_parameters(spec: ModelSpec) -> int:
    """Parameters that every step reads."""
    every = {name: prod(shape) for name, shape in model_tensors(spec).items()}
    return sum(every.values()) - (0 if spec.tied else every[EMBEDDING])
