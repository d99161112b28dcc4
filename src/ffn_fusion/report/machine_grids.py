"""What the model of a machine says: predictions, and the machines with where their constants come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ffn_fusion.latency.hardware import USABLE_MEMORY, Prediction
from ffn_fusion.latency.machines import Machine, Precision
from ffn_fusion.report.formats import per_second, printable, seconds, times
from ffn_fusion.report.grid import MODEL, Column, Grid, words
from ffn_fusion.units import gib

_PARTS = {
    "weights": "weights",
    "kv": "KV",
    "arithmetic": "arithmetic",
    "launches": "launches",
    "all_reduces": "all-reduces",
}
_FIRST = Column("first token", seconds)
_LATER = Column("later token", seconds)
_MEMORY = Column("memory each", str)


def predictions_grid(found: Mapping[str, Prediction]) -> Grid:
    """Predicted times, speeds and memory of each model on one machine."""
    return Grid.of(
        found.items(),
        (MODEL, lambda pair: pair[0]),
        (_FIRST, lambda pair: pair[1].time_to_first_token),
        (_LATER, lambda pair: pair[1].token),
        (Column("tokens/s", per_second), lambda pair: pair[1].tokens_per_second),
        (Column("of all", per_second), lambda pair: pair[1].throughput),
        (_MEMORY, lambda pair: _memory(pair[1])),
    )


def shares_grid(found: Mapping[str, Prediction], drafted: str = "") -> Grid:
    """What a decode step's time of each model goes to.

    Args:
        drafted: words about the model that proposes tokens, if any.
    """
    one = next(iter(found.values()))
    setting = one.setting

    def share(part: str) -> tuple[Column, Callable[[tuple[str, Prediction]], object]]:
        def value(pair: tuple[str, Prediction]) -> float:
            return float(getattr(pair[1].decode, part)) / pair[1].decode.total

        return Column(_PARTS[part], "{:.0%}".format), value

    return Grid.of(
        found.items(),
        (words("a decode step"), lambda pair: pair[0]),
        *map(share, _PARTS),
        notes=[
            f"Modelled, not measured: {place_of(one)}, batch {setting.batch}, {setting.context:,} tokens and "
            f"{setting.new_tokens:,} new ones, weights {setting.weights}, KV {setting.kv}{drafted}."
        ],
    )


def modelled_grid(found: Sequence[Mapping[str, Prediction]]) -> Grid:
    """Every model on every machine and batch; each of ``found`` is one machine and batch, the parent first."""
    rows = []
    for models in found:
        before = [None, *models.values()]
        parent = before[1]
        rows += [(name, one, parent, above) for (name, one), above in zip(models.items(), before, strict=False)]

    def faster(one: Prediction, than: Prediction | None) -> float | None:
        return than.token / one.token if than else None

    return Grid.of(
        rows,
        (words("machine"), lambda row: place_of(row[1])),
        (Column("batch"), lambda row: row[1].setting.batch),
        (MODEL, lambda row: row[0]),
        (_FIRST, lambda row: row[1].time_to_first_token),
        (_LATER, lambda row: row[1].token),
        (Column("tokens/s", per_second), lambda row: row[1].decode_throughput),
        (Column("over parent", times), lambda row: faster(row[1], row[2])),
        (Column("over the one above", times), lambda row: faster(row[1], row[3])),
        (_MEMORY, lambda row: _memory(row[1])),
    )


def place_of(one: Prediction) -> str:
    """``8 x h100``."""
    devices = one.setting.devices
    return f"{devices} x {printable(one.machine)}" if devices > 1 else printable(one.machine)


def _memory(one: Prediction) -> str:
    return gib(one.weight_bytes + one.kv_bytes) + ("" if one.fits else ": too much")


def misfits(found: Mapping[str, Prediction]) -> list[str]:
    """A line for each model that doesn't fit the machine."""
    return [
        f"{printable(name)} doesn't fit: {gib(one.weight_bytes)} of weights and {gib(one.kv_bytes)} of KV cache "
        f"on a device that has {gib(one.memory * USABLE_MEMORY)} for them"
        for name, one in found.items()
        if not one.fits
    ]


def machines_grid(machines: Iterable[Machine]) -> Grid:
    """Memory, bandwidth, arithmetic and overheads of each machine."""
    return Grid.of(
        machines,
        (words("machine"), lambda machine: machine.name),
        (Column("devices", unit="at most"), lambda machine: machine.max_devices),
        (Column("memory", gib), lambda machine: machine.memory),
        (Column("read", "{:.3g}".format, "TB/s"), lambda machine: machine.bandwidth / 1e12),
        (Column("BF16", str, "TFLOP/s"), lambda machine: _tera(machine, "bf16")),
        (Column("FP8", str, "TFLOP/s"), lambda machine: _tera(machine, "fp8")),
        (Column("attention", _micro, "µs"), lambda machine: machine.attention_seconds),
        (Column("FFN", _micro, "µs"), lambda machine: machine.ffn_seconds),
        (Column("all-reduce", _micro, "µs"), _small_all_reduce),
        notes=[
            "Attention and FFN: time beside reading and computing. All-reduce: of 32 KiB, a token's state at a hidden "
            "size of 16,384, over all devices."
        ],
    )


def _tera(machine: Machine, precision: Precision) -> str | None:
    if precision not in machine.flops:
        return None
    tera = machine.flops[precision] / 1e12
    return f"{tera:,.0f}" if tera >= 10 else f"{tera:.2g}"


def _micro(value: float) -> str:
    return f"{value * 1e6:,.1f}"


def _small_all_reduce(machine: Machine) -> float | None:
    return machine.all_reduce_seconds(32768, machine.max_devices) if machine.all_reduces else None


def sources_grid(machine: Machine) -> Grid:
    """Where each constant of a machine comes from."""
    return Grid.of(
        machine.sources,
        (words("constant"), lambda name: name),
        (words("value"), lambda name: _constant(getattr(machine, name))),
        (words("source"), machine.source),
    )


def _constant(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number:.4g}" for key, number in value.items())
    if isinstance(value, tuple):
        return "; ".join(
            f"{way.latency:.3g} s + {way.per_device:.3g} (n - 1) + {way.seconds_per_byte:.3g} per byte" for way in value
        )
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
