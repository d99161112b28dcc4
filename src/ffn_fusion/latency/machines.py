"""Machines as the hardware model knows them: those that ship (machines.yaml), and a person's own. No torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError

from ffn_fusion.errors import UsageError
from ffn_fusion.settings import Frozen

Precision = Literal["fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4"]
_SHIPPED = Path(__file__).parent / "machines.yaml"


class AllReduce(Frozen):
    """One way to sum a message of b bytes over n devices: latency + (n - 1) per_device + b seconds_per_byte."""

    latency: float = Field(ge=0)
    per_device: float = Field(default=0.0, ge=0)
    seconds_per_byte: float = Field(ge=0)

    def seconds(self, message: float, devices: int) -> float:
        return self.latency + self.per_device * (devices - 1) + self.seconds_per_byte * message


class Machine(Frozen):
    """One kind of device, and how several of them work together. Seconds, bytes and FLOPs are those of one device.

    Args:
        attention_seconds, ffn_seconds, linear_seconds: what a sub-block takes besides reading and computing: launching
            its kernels, and reaching full speed in each.
        step_seconds: a fixed time per step.
        sync_seconds: a fixed time per all-reduce, besides the all-reduce itself.
        all_reduces: ways to do an all-reduce; the fastest counts.
        sources: where a constant comes from.
        fitted: names of the constants that were fitted.
    """

    name: str
    about: str = ""
    memory: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    flops: dict[Precision, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    memory_efficiency: float = Field(default=1.0, gt=0, le=1)
    compute_efficiency: float = Field(default=1.0, gt=0, le=1)
    attention_seconds: float = Field(default=0.0, ge=0)
    ffn_seconds: float = Field(default=0.0, ge=0)
    linear_seconds: float = Field(default=0.0, ge=0)
    step_seconds: float = Field(default=0.0, ge=0)
    sync_seconds: float = Field(default=0.0, ge=0)
    all_reduces: tuple[AllReduce, ...] = ()
    max_devices: int = Field(default=1, ge=1)
    sources: dict[str, str] = Field(default_factory=dict)
    fitted: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a machine from a YAML or JSON file with the keys of this class.

        Raises:
            UsageError: no such file, or it doesn't describe a machine.
        """
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", "name a file that describes a machine") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: neither YAML nor JSON", "see docs/hardware.md for what it holds") from error
        if not isinstance(fields, dict):
            raise UsageError(f"{path}: doesn't describe a machine", "see docs/hardware.md for what it holds")
        try:
            return cls.model_validate({"name": path.stem, **fields})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{path}: {place}: {message}", "see docs/hardware.md for what it holds") from error

    def peak(self, precision: str) -> float:
        """Return the FLOP/s in a precision, or in 16 bits if the machine has to widen it to compute."""
        known: dict[str, float] = dict(self.flops.items())
        for name in (precision, "bf16", "fp32"):
            if name in known:
                return known[name]
        return max(known.values())

    def all_reduce_seconds(self, message: float, devices: int) -> float:
        if devices == 1 or not message:
            return 0.0
        return self.sync_seconds + min(way.seconds(message, devices) for way in self.all_reduces)

    def check_devices(self, devices: int) -> None:
        """Check the number of devices. Raises: UsageError: more than work together on this machine."""
        most = self.max_devices if self.all_reduces else 1
        if devices > most:
            raise UsageError(
                f"{self.name}: {devices} devices; at most {most} work together",
                f"give --devices {most} or fewer" if most > 1 else "leave --devices out, or name another machine",
            )

    def source(self, constant: str) -> str:
        """Return where a constant comes from; empty if it isn't known."""
        return ("fitted: " if constant in self.fitted else "") + self.sources.get(constant, "")


@cache
def shipped_machines() -> dict[str, Machine]:
    """Return the machines that ship, by name. An entry of machines.yaml may build on another one (``like``)."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load(_SHIPPED.read_text(encoding="utf-8"))
    found: dict[str, Machine] = {}
    for name, entry in entries.items():
        own = dict(entry)
        base = found[own.pop("like")].model_dump() if "like" in own else {}
        sources = {**base.get("sources", {}), **own.pop("sources", {})}
        found[name] = Machine.model_validate({**base, **own, "name": name, "sources": sources})
    return found


def find_machine(name: str) -> Machine:
    """Return a machine that ships, or the one that a YAML or JSON file describes.

    Raises:
        UsageError: there is no such machine or file.
    """
    shipped = shipped_machines()
    if name.lower() in shipped:
        return shipped[name.lower()]
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        return Machine.load(path)
    raise UsageError(f"machine {name!r} isn't known", f"known are {', '.join(shipped)}; or give a YAML or JSON file")
