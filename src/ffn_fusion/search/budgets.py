"""What a search can limit: each resource as a sum over the chosen candidates, and budgets as a person writes them.

Every resource is a sum, so that a budget is one linear constraint. Throughput and the price of a token are the seconds
of a request in other units: at a given batch size, least seconds are most throughput.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, isfinite, log10
from typing import Annotated, Any, NamedTuple

from pydantic import PlainSerializer, WithJsonSchema

from ffn_fusion.errors import UsageError
from ffn_fusion.settings import Option, read_by
from ffn_fusion.units import parse_bytes, parse_count, parse_seconds


@dataclass(frozen=True)
class Load:
    """What a child will serve: sequences at a time, tokens of each request and answer, and what an hour costs."""

    batch: int
    tokens_in: int
    tokens_out: int
    price: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the KV cache at the end of every answer."""
        return self.batch * (self.tokens_in + self.tokens_out)

    @property
    def written(self) -> int:
        """Tokens of all answers."""
        return self.batch * self.tokens_out


def _one(load: Load) -> float:
    return 1.0


def _dollars(load: Load) -> float:
    return (load.price or 0.0) / 3600 / load.written * 1e6


@dataclass(frozen=True)
class Resource:
    """Something that candidates take.

    Args:
        words: what it is.
        needs: columns of the costs table that it's computed from.
        parse: text -> value.
        units: for values as text, each with the value of one of them, the largest first.
        factor: value of a child for each unit of the sum over its candidates.
        least: the budget is a least value, which is ``factor`` over the sum.
    """

    words: str
    needs: frozenset[str]
    parse: Callable[[str], float]
    units: tuple[tuple[str, float], ...] = (("", 1.0),)
    factor: Callable[[Load], float] = _one
    least: bool = False

    def value(self, total: float, load: Load) -> float:
        """The value of a child whose candidates sum up to ``total``."""
        factor = self.factor(load)
        return total * factor if not self.least else factor / total if total else float("inf")

    def bound(self, value: float, load: Load) -> float:
        """The largest sum within a budget of ``value``."""
        return self.factor(load) / value if self.least else value / self.factor(load)

    def show(self, value: float, up: bool | None = None) -> str:
        """Four significant digits in a unit that ``parse`` reads, rounded up or down where that matters."""
        unit, size = next((one for one in self.units if abs(value) >= one[1]), self.units[-1])
        count = value / size
        if not isfinite(count):
            return str(count)
        if abs(count - round(count)) < 1e-9 and abs(count) < 1e6:
            return f"{round(count):,}{unit}".replace(",", "")
        places = max(3 - floor(log10(abs(count))), 0)
        rounded = round(count, places) if up is None else (ceil if up else floor)(count * 10**places) / 10**places
        return f"{rounded:.{places}f}{unit}"


def _plain(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{text!r} isn't a number above 0", "write it like 40, or like 0.7x of the parent's")
    return value


_SECONDS = frozenset({"decode_seconds"})
_TIME = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
_BYTES = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("", 1.0))
_COUNT = (("B", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
RESOURCES: Mapping[str, Resource] = {
    "memory": Resource("memory", frozenset({"weight_bytes", "kv_bytes"}), parse_bytes, _BYTES),
    "latency": Resource("latency of a token", _SECONDS, parse_seconds, _TIME),
    "first-token": Resource("time to first token", frozenset({"prefill_seconds"}), parse_seconds, _TIME),
    "request": Resource("latency of a request", _SECONDS, parse_seconds, _TIME),
    "throughput": Resource("tokens a second", _SECONDS, _plain, factor=lambda load: load.written, least=True),
    "cost": Resource("cost of a million tokens", _SECONDS, _plain, factor=_dollars),
    "steps": Resource("sequential steps", frozenset({"steps"}), _plain),
    "parameters": Resource("parameters", frozenset({"parameters"}), parse_count, _COUNT),
    "kv": Resource("KV bytes a token", frozenset({"kv_bytes"}), parse_bytes, _BYTES),
}
"""By the word that names each of them in options."""


class Amount(NamedTuple):
    """A budget as it was written: a value, or a multiple of what the parent takes."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value!r}".removesuffix(".0") + "x" * self.relative


def parse_amount(name: str, text: Any) -> Any:
    """``"0.7x"`` of the parent's, or a value in the resource's own units.

    Raises:
        UsageError: neither.
    """
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        return text
    word = str(text).strip().lower()
    if word.endswith("x"):
        return Amount(_plain(word[:-1]), True)
    return Amount(float(RESOURCES[name].parse(str(text))), False)


AS_TEXT = (PlainSerializer(str), WithJsonSchema({"type": "string"}))
"""How fields that are read from a word are written, and described."""


def _field(name: str, metavar: str) -> Any:
    return Annotated[Amount, read_by(partial(parse_amount, name)), *AS_TEXT, Option(metavar=metavar)]


Memory, Latency, FirstToken, Request, Throughput, Cost, Steps, Parameters, KvBytes = (
    _field("memory", "<size>|0.7x"),
    _field("latency", "<time>|0.7x"),
    _field("first-token", "<time>|0.7x"),
    _field("request", "<time>|0.7x"),
    _field("throughput", "<float>|1.5x"),
    _field("cost", "<float>|0.7x"),
    _field("steps", "<int>|0.7x"),
    _field("parameters", "<count>|0.7x"),
    _field("kv", "<size>|0.7x"),
)
