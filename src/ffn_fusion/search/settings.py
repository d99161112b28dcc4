"""The settings of a search: what the child may take at most, and what else it has to keep to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ffn_fusion.blueprint import Part
from ffn_fusion.blueprint.ranges import format_channels, parse_blocks
from ffn_fusion.errors import UsageError
from ffn_fusion.portability.rule import Engines
from ffn_fusion.search.budgets import (
    AS_TEXT,
    RESOURCES,
    Amount,
    Cost,
    FirstToken,
    KvBytes,
    Latency,
    Memory,
    Parameters,
    Request,
    Steps,
    Throughput,
    parse_amount,
)
from ffn_fusion.settings import Option, Settings, read_by


class Word(NamedTuple):
    """A choice by its word, of one part or of any."""

    part: Literal["attention", "ffn", "block", ""]
    choice: str

    def __str__(self) -> str:
        return f"{self.part}:{self.choice}" if self.part else self.choice


class Count(NamedTuple):
    """How many of a choice."""

    word: Word
    number: int

    def __str__(self) -> str:
        return f"{self.word}={self.number}"


class Pin(NamedTuple):
    """Blocks that take a choice."""

    blocks: tuple[int, ...]
    word: Word

    def __str__(self) -> str:
        return f"{format_channels(self.blocks)}={self.word}"


class Sweep(NamedTuple):
    """Budgets of one resource, from ``low`` to ``high``."""

    name: str
    low: Amount
    high: Amount
    points: int

    def __str__(self) -> str:
        return f"{self.name}={self.low}..{self.high}:{self.points}"


def _word(text: str) -> Word:
    part, colon, choice = text.strip().partition(":")
    if colon and part in ("attention", "ffn", "block"):
        return Word(part, choice.strip())  # type: ignore[arg-type]
    return Word("", text.strip())


def _count(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    word, equals, count = value.rpartition("=")
    if not equals or not word.strip() or not re.fullmatch(r"\s*\d{1,6}\s*", count):
        raise UsageError(f"{value!r} isn't a choice and a number", "write it like linear=4 or attention:none=8")
    return Count(_word(word), int(count))


def _pin(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    blocks, equals, word = value.partition("=")
    if not equals or not word.strip() or not blocks.strip():
        raise UsageError(f"{value!r} isn't blocks and a choice", "write it like 0-3=kept or 5=ffn:width 50%")
    return Pin(parse_blocks(blocks), _word(word))


def _sweep(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([\w -]+?)\s*=(.+?)\.\.(.+?):\s*(\d{1,4})\s*", value)
    name = found[1].replace("_", "-").replace(" ", "-") if found else ""
    if not found or name not in RESOURCES or int(found[4]) < 2:
        raise UsageError(
            f"{value!r} isn't a sweep",
            f"write it like latency=0.5x..1x:8, at least 2 budgets; known are {', '.join(RESOURCES)}",
        )
    low, high = parse_amount(name, found[2]), parse_amount(name, found[3])
    if low.relative != high.relative or low.value >= high.value:
        raise UsageError(f"{value!r} doesn't go from a smaller to a larger budget", "write it like latency=0.5x..1x:8")
    return Sweep(name, low, high, int(found[4]))


Counted = Annotated[Count, read_by(_count), *AS_TEXT]
Pinned = Annotated[Pin, read_by(_pin), *AS_TEXT]
Swept = Annotated[Sweep, read_by(_sweep), *AS_TEXT, Option(metavar="<budget>=<from>..<to>:<n>")]
_EACH = Option(metavar="<choice>=<n>", separator="")


class SearchSettings(Settings):
    """Budgets, each in its own units or as a multiple of the parent's (``0.7x``), and other rules."""

    max_memory: Memory | None = Field(
        None, description="Most memory: weights and the KV cache of the whole batch, e.g. 12GiB."
    )
    max_latency: Latency | None = Field(None, description="Most time of a decode step, e.g. 20ms.")
    max_first_token: FirstToken | None = Field(None, description="Most time of a prefill.")
    max_request: Request | None = Field(None, description="Most time of a whole request: a prefill and its answer.")
    min_throughput: Throughput | None = Field(
        None, description="Least tokens a second, all answers of a batch together."
    )
    max_cost: Cost | None = Field(None, description="Most that a million tokens may cost, at --price.")
    max_steps: Steps | None = Field(None, description="Most sequential steps.")
    max_parameters: Parameters | None = Field(None, description="Most parameters, e.g. 6B.")
    max_kv: KvBytes | None = Field(None, description="Most bytes that a token adds to the KV cache.")
    batch: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Sequences at a time; of several, the one with the best child is taken. Default: the least timed.",
    )
    tokens_in: int | None = Field(
        None, ge=1, description="Tokens of a prompt. Default: the least context timed, or 128."
    )
    tokens_out: int = Field(128, ge=1, description="Tokens of an answer.")
    price: float | None = Field(None, gt=0, description="What an hour of the machine costs, in any currency.")
    at_most: Annotated[tuple[Counted, ...], _EACH] = Field(
        (), description="Take a choice at most so often, e.g. linear=4 or attention:none=8; may be repeated."
    )
    at_least: Annotated[tuple[Counted, ...], _EACH] = Field(
        (), description="Take a choice at least so often; may be repeated."
    )
    pin: Annotated[tuple[Pinned, ...], Option(metavar="<blocks>=<choice>", separator="")] = Field(
        (), description="Blocks that take this choice, e.g. 0-3=kept or 5=ffn:width 50%; may be repeated."
    )
    uniform: tuple[Part, ...] = Field((), description="Parts for which all blocks take the same choice.")
    for_engines: Annotated[Engines, Option("--for-engine")] = Field(
        (), description="Engines that must be able to load the child; all is every one. Needs --model."
    )
    solutions: int = Field(1, ge=1, le=100, description="Children to find, each unlike those before.")
    alpha: float = Field(
        0.8, gt=0, lt=1, description="Share of an earlier child's sub-blocks that a later one may have at most."
    )
    sweep: Swept | None = Field(None, description="Solve for several budgets of one resource, e.g. latency=0.5x..1x:8.")
    time_limit: float = Field(
        60.0, gt=0, description="Most seconds for one solution; the gap is told if it isn't optimal."
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.sweep and self.sweep.name in self.budgets:
            raise PydanticCustomError(
                "two_budgets", "a sweep sets the budget of {name} itself", {"name": self.sweep.name}
            )
        return self

    @property
    def budgets(self) -> Mapping[str, Amount]:
        """The budgets that are set, by the word of their resource."""
        fields = {
            name: ("min_" if resource.least else "max_") + name.replace("-", "_")
            for name, resource in RESOURCES.items()
        }
        return {name: amount for name, field in fields.items() if (amount := getattr(self, field)) is not None}

    @property
    def needs_seconds(self) -> bool:
        """Whether a budget can't be kept to without timings."""
        return any(column.endswith("_seconds") for name in self.budgets for column in RESOURCES[name].needs)


BUDGETS = tuple(name for name in SearchSettings.model_fields if name.startswith(("max_", "min_")))
"""The settings that are budgets."""
