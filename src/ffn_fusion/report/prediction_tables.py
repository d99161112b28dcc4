"""What the model of a machine says, as tables: predictions, and the machines with where their constants come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ffn_fusion.latency.hardware import USABLE_MEMORY, Prediction
from ffn_fusion.latency.machines import Machine, Precision
from ffn_fusion.report.tables import NOTHING, Grid, printable, ratio, seconds
from ffn_fusion.units import gib

_PARTS = {
    "weights": "weights",
    "kv": "KV",
    "arithmetic": "arithmetic",
    "launches": "launches",
    "all_reduces": "all-reduces",
}


def predictions_grid(found: Mapping[str, Prediction]) -> Grid:
    """A row for every model: times, speeds and memory of a device."""
    rows = tuple(
        (
            printable(name),
            seconds(one.time_to_first_token),
            seconds(one.token),
            _rate(one.tokens_per_second),
            _rate(one.throughput),
            gib(one.weight_bytes + one.kv_bytes) + ("" if one.fits else ": too much"),
        )
        for name, one in found.items()
    )
    columns = ("model", "first token", "a token", "tokens/s", "of all", "memory each")
    return Grid(columns, rows, words=1)


def modelled_grid(found: Sequence[Mapping[str, Prediction]]) -> Grid:
    """A row for every machine, batch and model, ``found`` being those of one machine and batch; the parent is first."""
    rows = []
    for models in found:
        parent, before = next(iter(models.values())), None
        for name, one in models.items():
            setting = one.setting
            rows.append(
                (
                    place_of(one),
                    str(setting.batch),
                    printable(name),
                    seconds(one.time_to_first_token),
                    seconds(one.token),
                    _rate(one.decode_throughput),
                    ratio(parent.token / one.token),
                    ratio(before.token / one.token) if before else NOTHING,
                    gib(one.weight_bytes + one.kv_bytes) + ("" if one.fits else ": too much"),
                )
            )
            before = one
    columns = ("machine", "batch", "model", "first token", "a token", "tokens/s", "over parent", "over the one above",
               "memory each")  # fmt: skip
    return Grid(columns, tuple(rows), words=3)


def place_of(one: Prediction) -> str:
    """``8 x h100``."""
    devices = one.setting.devices
    return f"{devices} x {printable(one.machine)}" if devices > 1 else printable(one.machine)


def shares_grid(found: Mapping[str, Prediction]) -> Grid:
    """A row for every model: what a decode step's time goes to."""
    rows = tuple(
        (printable(name), *(f"{getattr(one.decode, part) / one.decode.total:.0%}" for part in _PARTS))
        for name, one in found.items()
    )
    return Grid(("a decode step", *_PARTS.values()), rows, words=1)


def misfits(found: Mapping[str, Prediction]) -> list[str]:
    """A line for every model that doesn't fit the machine."""
    return [
        f"{printable(name)} doesn't fit: {gib(one.weight_bytes)} of weights and {gib(one.kv_bytes)} of KV cache "
        f"on a device that has {gib(one.memory * USABLE_MEMORY)} for them"
        for name, one in found.items()
        if not one.fits
    ]


def machines_grid(machines: Iterable[Machine]) -> Grid:
    """The machines in a row each: TB/s, TFLOP/s in BF16 and FP8, and microseconds beside reading and computing.

    The all-reduce is one of 32 KiB, what a token of a hidden size of 16,384 takes, on all devices.
    """
    rows = tuple(
        (
            machine.name,
            str(machine.max_devices),
            gib(machine.memory),
            f"{machine.bandwidth / 1e12:.3g}",
            _tera(machine, "bf16"),
            _tera(machine, "fp8"),
            f"{machine.attention_seconds * 1e6:,.1f}",
            f"{machine.ffn_seconds * 1e6:,.1f}",
            _small_all_reduce(machine),
        )
        for machine in machines
    )
    columns = ("machine", "up to", "memory", "TB/s", "BF16", "FP8", "attention", "FFN", "all-reduce")
    return Grid(columns, rows, words=1)


def _tera(machine: Machine, precision: Precision) -> str:
    if precision not in machine.flops:
        return NOTHING
    tera = machine.flops[precision] / 1e12
    return f"{tera:,.0f}" if tera >= 10 else f"{tera:.2g}"


def _small_all_reduce(machine: Machine) -> str:
    if not machine.all_reduces:
        return NOTHING
    return f"{machine.all_reduce_seconds(32768, machine.max_devices) * 1e6:.1f}"


def sources_grid(machine: Machine) -> Grid:
    """Where every constant of a machine comes from."""
    rows = tuple((name, _constant(getattr(machine, name)), machine.source(name)) for name in machine.sources)
    return Grid(("constant", "value", "source"), rows, words=3)


def _constant(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number:.4g}" for key, number in value.items())
    if isinstance(value, tuple):
        return "; ".join(
            f"{way.latency:.3g} s + {way.per_device:.3g} (n - 1) + {way.seconds_per_byte:.3g} a byte" for way in value
        )
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
