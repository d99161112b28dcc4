"""Values as text: every figure of merit is formatted here, so that terminal, page and model card agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "–"  # noqa: RUF001 (a dash in a cell, not a minus)


@dataclass(frozen=True)
class Measured:
    """A mean with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Span:
    """A range of values in one unit, such as p10 to p90."""

    low: float
    high: float


def printable(text: object) -> str:
    """Text that others wrote on one line and without control characters, so that no terminal escape gets through."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(str(text).split()))


# ---- quality


def kl(value: float | Measured) -> str:
    """A KL divergence, damage or distance: four decimals below 1, three above, never an exponent."""
    size = value.value if isinstance(value, Measured) else value
    return _fixed(value, 4 if abs(size) < 1 else 3)


def perplexity(value: float | Measured) -> str:
    """A perplexity: two decimals below 100, one below 1,000, none above; ``1.7M`` from a million on."""
    size = value.value if isinstance(value, Measured) else value
    if size < 1e6:
        return _fixed(value, 2 if size < 100 else 1 if size < 1000 else 0)
    return f"{count(value.value)} ± {count(value.error)}" if isinstance(value, Measured) else count(value)


def increase(value: float) -> str:
    """A difference of two losses, with its sign."""
    return f"{value:+.4f}"


def share(value: float | Measured) -> str:
    """A share in percent without the sign, which stands in the heading."""
    if isinstance(value, Measured):
        return _fixed(Measured(100 * value.value, 100 * value.error), 1)
    return f"{100 * value:.1f}"


def task_score(value: float | Measured) -> str:
    """A score on a task: four decimals below 1, where accuracies are, two above."""
    size = value.value if isinstance(value, Measured) else value
    return _fixed(value, 4 if abs(size) <= 1 else 2)


def task_difference(value: float | Measured) -> str:
    """A difference of two scores on a task, with its sign."""
    size = value.value if isinstance(value, Measured) else value
    return ("+" if size > 0 else "") + task_score(value).replace("-", "\N{MINUS SIGN}")


def change(fraction: float, decimals: int) -> str:
    """``-0.27`` -> ``−27 %``."""
    return f"{100 * fraction:+.{decimals}f} %".replace("-", "\N{MINUS SIGN}")


def _fixed(value: float | Measured, decimals: int) -> str:
    if isinstance(value, Measured):
        return f"{value.value:,.{decimals}f} ± {value.error:,.{decimals}f}"
    return f"{value:,.{decimals}f}"


# ---- speed


def seconds(value: float | Span) -> str:
    """A time or a range of times, in the unit that fits and with three significant digits."""
    values = (value.low, value.high) if isinstance(value, Span) else (value,)
    unit, size = next((u for u in (("s", 1.0), ("ms", 1e-3)) if max(values) >= u[1]), ("µs", 1e-6))
    largest = max(values) / size
    decimals = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return "–".join(f"{v / size:,.{decimals}f}" for v in values) + f" {unit}"  # noqa: RUF001


def times(value: float) -> str:
    """How many times as fast: ``1.19×``."""
    return f"{value:.2f}×"  # noqa: RUF001


def per_second(value: float) -> str:
    """Tokens a second."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def rate(value: float, unit: str) -> str:
    """``6739803357`` bytes -> ``6.7 GB/s``."""
    return _scaled(value, tuple(prefix + unit for prefix in ("", "k", "M", "G", "T", "P")), " ") + "/s"


# ---- counts


def whole(value: float) -> str:
    """``4608`` -> ``4,608``."""
    return f"{value:,.0f}"


def count(value: float) -> str:
    """``134515008`` -> ``134.5M``."""
    return _scaled(value, ("", "K", "M", "B", "T"), "")


def tera(value: float) -> str:
    """FLOPs in TFLOPs."""
    return f"{value / 1e12:,.1f}"


def byte_count(value: float) -> str:
    """``23040`` -> ``23.0 kB`` (powers of ten)."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"), " ")


def _scaled(value: float, units: Sequence[str], space: str) -> str:
    place = 0
    while abs(value) >= 1000 and place < len(units) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.1f}{space}{units[place]}" if place else f"{value:,.0f}{space}{units[0]}"
