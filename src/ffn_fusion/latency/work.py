"""The work of a sub-block: bytes, FLOPs and all-reduces of one step on one of the devices that share a model.

It is counted from the sizes in the spec and is the same for every machine; ``latency.hardware`` turns it into seconds.
With tensor parallelism, a device holds its share of every matrix; KV heads that are fewer than the devices are copied
to several of them. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ffn_fusion.errors import UsageError
from ffn_fusion.families import AttentionSpec, FfnSpec, ModelSpec
from ffn_fusion.families.layout import head_parameters, sub_block_parameters

Kind = Literal["attention", "ffn", "linear", "head"]
SubBlock = AttentionSpec | FfnSpec

ITEM_BYTES: Mapping[str, float] = {
    "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1,
    "fp4": 0.5625, "int4": 0.5625,  # 4 bits, and a scale of 16 bits for 32 of them (or of 8 bits for 16)
}  # fmt: skip
"""Bytes of a number in each precision."""


@dataclass(frozen=True)
class Setting:
    """How a model is served.

    Args:
        devices: number of devices that share every layer by tensor parallelism.
        batch: sequences at a time.
        context: tokens of each prompt.
        new_tokens: tokens generated after it.
        weights, kv: precision of the blocks' matrices and of the KV cache. Embedding and head keep 16 bits if the
            weights have fewer, as engines do it.
    """

    devices: int = 1
    batch: int = 1
    context: int = 128
    new_tokens: int = 128
    weights: str = "bf16"
    kv: str = "bf16"

    def __post_init__(self) -> None:
        for name in (self.weights, self.kv):
            if name not in ITEM_BYTES:
                raise UsageError(f"precision {name!r} isn't known", f"take one of {', '.join(ITEM_BYTES)}")
        if min(self.devices, self.batch, self.context, self.new_tokens) < 1:
            raise UsageError("devices, batch, context and new tokens are at least 1", "give positive whole numbers")

    @property
    def dense(self) -> str:
        """The precision of activations, embedding and head."""
        return self.weights if ITEM_BYTES[self.weights] >= 2 else "bf16"


@dataclass(frozen=True)
class Step:
    """One pass through the model: ``tokens`` new tokens per sequence, after ``past`` tokens in the KV cache.

    The head computes logits for the last ``logits`` of them.
    """

    tokens: int = 1
    past: float = 0
    logits: int = 1


@dataclass(frozen=True)
class SubBlockWork:
    """What one device does in a sub-block (or in the head) in one step.

    Args:
        matmul_flops: computed in ``precision``.
        attention_flops: of scores and of sums over values, computed in ``dense`` (16 bits or more).
        all_reduce_bytes: size of the message; 0 on one device.
    """

    kind: Kind
    weight_bytes: float
    activation_bytes: float
    kv_bytes: float
    matmul_flops: float
    attention_flops: float
    all_reduce_bytes: float
    precision: str
    dense: str


def sub_block_work(spec: ModelSpec, part: SubBlock, setting: Setting, step: Step) -> SubBlockWork:
    """Return the work of an attention or an FFN with its norm.

    T = batch x new tokens, D hidden, H heads, K KV heads, d head_dim. Bytes: the weights once, K and V of every
    attended token once, activations in and out of each matrix. FLOPs: 2 T parameters, and in the attention 4 H d for
    every pair of a token and one that it attends to.
    """
    n, T, D, d = setting.devices, setting.batch * step.tokens, spec.hidden_size, spec.head_dim
    item = ITEM_BYTES[setting.dense]
    attending = isinstance(part, AttentionSpec) and part.kind == "attention"
    kv_heads = 0
    if isinstance(part, AttentionSpec) and attending:
        kv_heads = -(-part.kv_heads // n)  # on each device
        parameters = sub_block_parameters(spec, replace(part, kv_heads=kv_heads * n)) / n
        inner = (2 * part.heads / n + 2 * kv_heads) * d
    else:
        parameters = sub_block_parameters(spec, part) / n
        inner = 3 * part.width / n if isinstance(part, FfnSpec) else D / n
    attended = step.tokens * step.past + step.tokens * (step.tokens + 1) / 2
    return SubBlockWork(
        kind=_kind(part),
        weight_bytes=parameters * ITEM_BYTES[setting.weights],
        activation_bytes=T * (2 * D + inner) * item,
        kv_bytes=2 * setting.batch * (step.past + step.tokens) * kv_heads * d * ITEM_BYTES[setting.kv],
        matmul_flops=2 * T * parameters,
        attention_flops=4 * setting.batch * attended * d * spec.heads / n if attending else 0,
        all_reduce_bytes=T * D * item if n > 1 else 0,
        precision=setting.weights,
        dense=setting.dense,
    )


def _kind(part: SubBlock) -> Kind:
    if part.kind == "linear":
        return "linear"
    return "attention" if isinstance(part, AttentionSpec) else "ffn"


def head_work(spec: ModelSpec, setting: Setting, step: Step) -> SubBlockWork:
    """Return the work of the last norm and the head, once per step; logits are gathered from all devices."""
    n, T = setting.devices, setting.batch * step.logits
    item = ITEM_BYTES[setting.dense]
    parameters = head_parameters(spec) / n
    return SubBlockWork(
        kind="head",
        weight_bytes=parameters * item,
        activation_bytes=T * (spec.hidden_size + spec.vocab_size / n) * item,
        kv_bytes=0,
        matmul_flops=2 * T * parameters,
        attention_flops=0,
        all_reduce_bytes=T * spec.hidden_size * item if n > 1 else 0,
        precision=setting.dense,
        dense=setting.dense,
    )


def sub_blocks(spec: ModelSpec) -> Counter[SubBlock]:
    """Return the model's distinct sub-blocks and the number of each."""
    return Counter(part for block in spec.blocks for part in (block.attention, block.ffn) if part is not None)


def model_work(spec: ModelSpec, setting: Setting, step: Step) -> list[tuple[SubBlockWork, int]]:
    """Return all work in a step of the whole model, and how often each piece is done."""
    found = [(sub_block_work(spec, part, setting, step), count) for part, count in sub_blocks(spec).items()]
    return [*found, (head_work(spec, setting, step), 1)]


def weight_bytes(spec: ModelSpec, setting: Setting) -> float:
    """Return the bytes of the model's weights on each device."""
    works = model_work(spec, setting, Step())
    embedding = 0.0 if spec.tied else head_parameters(spec) * ITEM_BYTES[setting.dense] / setting.devices
    return embedding + sum(work.weight_bytes * count for work, count in works)


def kv_bytes(spec: ModelSpec, setting: Setting) -> float:
    """Return the bytes of the KV cache on each device, when every sequence has reached its full length."""
    longest = Step(tokens=1, past=setting.context + setting.new_tokens - 1)
    return sum(work.kv_bytes * count for work, count in model_work(spec, setting, longest))
