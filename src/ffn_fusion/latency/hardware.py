"""The model of a machine: the time of a model's every sub-block, and what they come to, without the machine. No torch.

    sub-block = max(bytes / (bandwidth e_m), FLOPs / (peak e_c))  + fixed + all-reduce
    all-reduce(b, n) = sync + min over ways(latency + (n - 1) per_device + b seconds_per_byte)

The maximum is taken for the matrices and for the attention over the cache apart, since they are kernels one after the
other. Sub-blocks are steps one after the other, so a model's time is their sum and the head's: what fusing saves are
the fixed parts and the all-reduces of the FFNs that it lays side by side, as their bytes stay.
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
"""Share of a device's memory for weights and cache, as engines take it by default; the rest is for activations."""


@dataclass(frozen=True)
class Parts:
    """Seconds of a step by what they go to. What's bound by arithmetic and not by reading is ``arithmetic``."""

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
    """What the model of the machine says of a model in a setting. Seconds; bytes on each device.

    ``decode`` is the mean step of the ``new_tokens``. With a draft, ``token`` counts what it brings in.
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
        """Of one sequence, while it's written."""
        return 1 / self.token

    @property
    def decode_throughput(self) -> float:
        """Tokens a second of all sequences together, while they're written."""
        return self.setting.batch / self.token

    @property
    def throughput(self) -> float:
        """New tokens a second of all sequences together, with the time that their prompts take."""
        tokens = self.setting.batch * self.setting.new_tokens
        return tokens / (self.prefill.total + self.setting.new_tokens * self.token)


def work_seconds(machine: Machine, work: SubBlockWork, devices: int = 1) -> Parts:
    """Time of one piece of work."""
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
    """Time of one sub-block of a model, by default in a decode step in the middle of what is written.

    Args:
        spec: the model for its sizes (hidden size, heads); ``part`` needn't be in it.
    """
    return work_seconds(machine, sub_block_work(spec, part, setting, step or decode_step(setting)), setting.devices)


def step_seconds(machine: Machine, spec: ModelSpec, setting: Setting, step: Step) -> Parts:
    """Time of one pass through the whole model."""
    return _sum(work_seconds(machine, work, setting.devices).times(n) for work, n in model_work(spec, setting, step))


def decode_step(setting: Setting, tokens: int = 1) -> Step:
    """The mean decode step: times are linear in what's in the cache, so it stands for all."""
    return Step(tokens, setting.context + (setting.new_tokens - 1) / 2, tokens)


def check_setting(machine: Machine, spec: ModelSpec, setting: Setting) -> None:
    """Raises: UsageError: too many devices for the machine, or heads that they can't share evenly."""
    machine.check_devices(setting.devices)
    if spec.heads % setting.devices:
        raise UsageError(
            f"{spec.heads} heads can't be shared evenly by {setting.devices} devices",
            "give a number of devices that divides them",
        )


def predict(machine: Machine, spec: ModelSpec, setting: Setting) -> Prediction:
    """Times and memory of a model on a machine.

    Raises:
        UsageError: as :func:`check_setting`. A model that doesn't fit is no error: see :attr:`Prediction.fits`.
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
