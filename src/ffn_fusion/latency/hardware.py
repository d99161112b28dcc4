"""The hardware model: the time of every sub-block of a model on a machine that isn't here, and their sum. No torch.

    sub-block = max(bytes / (bandwidth e_m), FLOPs / (peak e_c))  + fixed + all-reduce
    all-reduce(b, n) = sync + min over ways(latency + (n - 1) per_device + b seconds_per_byte)

The maximum is taken separately for the matrices and for the attention over the cache, since these are consecutive
kernels. Sub-blocks are consecutive steps, so a model's time is the sum of theirs and the head's. Fusing FFNs saves
fixed times and all-reduces; the bytes stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.machines import Machine
from ffn_fusion.latency.work import (
    Setting,
    Step,
    SubBlock,
    SubBlockWork,
    kv_bytes,
    model_work,
    sub_block_work,
    weight_bytes,
)

USABLE_MEMORY = 0.9
"""Share of a device's memory for weights and cache, the usual default of engines; the rest is for activations."""


@dataclass(frozen=True)
class Parts:
    """Seconds of a step by what they are spent on; ``arithmetic`` is what is bound by FLOPs instead of reading."""

    weights: float = 0.0
    kv: float = 0.0
    arithmetic: float = 0.0
    launches: float = 0.0
    all_reduces: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.arithmetic + self.launches + self.all_reduces

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def times(self, factor: float) -> Parts:
        return Parts(*(getattr(self, name) * factor for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Prediction:
    """The predicted times and memory of a model in a setting.

    Args:
        prefill: of all prompts.
        decode: a mean step of the ``new_tokens``; with a draft, a round.
        token: seconds per new token of each sequence.
        weight_bytes, kv_bytes, memory: bytes on each device: of the weights, of the KV cache, and in all.
    """

    machine: str
    setting: Setting
    prefill: Parts
    decode: Parts
    token: float
    weight_bytes: float
    kv_bytes: float
    memory: float

    @property
    def time_to_first_token(self) -> float:
        return self.prefill.total

    @property
    def fits(self) -> bool:
        return self.weight_bytes + self.kv_bytes <= self.memory * USABLE_MEMORY

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of one sequence, without its prefill."""
        return 1 / self.token

    @property
    def decode_throughput(self) -> float:
        """New tokens per second of all sequences together, without their prefill."""
        return self.setting.batch / self.token

    @property
    def throughput(self) -> float:
        """New tokens per second of all sequences together, prefill included."""
        tokens = self.setting.batch * self.setting.new_tokens
        return tokens / (self.prefill.total + self.setting.new_tokens * self.token)


def work_seconds(machine: Machine, work: SubBlockWork, devices: int = 1) -> Parts:
    """Return the time of one piece of work on each of ``devices`` devices."""
    fixed = {
        "attention": machine.attention_seconds,
        "ffn": machine.ffn_seconds,
        "linear": machine.linear_seconds,
        "head": machine.step_seconds,
    }[work.kind]
    rate = machine.bandwidth * machine.memory_efficiency
    matrices, cache = (work.weight_bytes + work.activation_bytes) / rate, work.kv_bytes / rate
    products = work.matmul_flops / (machine.peak(work.precision) * machine.compute_efficiency)
    scores = work.attention_flops / (machine.peak(work.dense) * machine.compute_efficiency)
    return Parts(
        weights=matrices if matrices >= products else 0.0,
        kv=cache if cache >= scores else 0.0,
        arithmetic=(products if products > matrices else 0.0) + (scores if scores > cache else 0.0),
        launches=fixed,
        all_reduces=machine.all_reduce_seconds(work.all_reduce_bytes, devices),
    )


def sub_block_seconds(
    machine: Machine, spec: ModelSpec, part: SubBlock, setting: Setting, step: Step | None = None
) -> Parts:
    """Return the time of one sub-block of a model, by default in the mean decode step.

    Args:
        spec: a model with its sizes (hidden size, heads); ``part`` needn't be in it.
    """
    return work_seconds(machine, sub_block_work(spec, part, setting, step or decode_step(setting)), setting.devices)


def step_seconds(machine: Machine, spec: ModelSpec, setting: Setting, step: Step) -> Parts:
    """Return the time of one pass through the whole model."""
    return _sum(work_seconds(machine, work, setting.devices).times(n) for work, n in model_work(spec, setting, step))


def decode_step(setting: Setting, tokens: int = 1) -> Step:
    """Return the mean decode step, which represents all: times are linear in the length of the cache."""
    return Step(tokens, setting.context + (setting.new_tokens - 1) / 2, tokens)


def check_setting(machine: Machine, spec: ModelSpec, setting: Setting) -> None:
    """Check that the devices exist and can share the heads evenly. Raises: UsageError."""
    machine.check_devices(setting.devices)
    if uneven := [heads for heads in spec.head_counts if heads % setting.devices]:
        raise UsageError(
            f"{uneven[0]} heads can't be shared evenly by {setting.devices} devices",
            "give a number of devices that divides them",
        )


def predict(machine: Machine, spec: ModelSpec, setting: Setting) -> Prediction:
    """Predict times and memory of a model on a machine.

    Raises:
        UsageError: see :func:`check_setting`. A model that doesn't fit is no error: see :attr:`Prediction.fits`.
    """
    check_setting(machine, spec, setting)
    decode = step_seconds(machine, spec, setting, decode_step(setting))
    return Prediction(
        machine=machine.name,
        setting=setting,
        prefill=step_seconds(machine, spec, setting, Step(tokens=setting.context)),
        decode=decode,
        token=decode.total,
        weight_bytes=weight_bytes(spec, setting),
        kv_bytes=kv_bytes(spec, setting),
        memory=machine.memory,
    )


def _sum(parts: Iterable[Parts]) -> Parts:
    total = Parts()
    for part in parts:
        total = total + part
    return total
