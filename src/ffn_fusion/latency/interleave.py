"""Several models in turn: every round runs all of them, whatever engine they're in.

Neighbouring runs share whatever else the machine does at that moment, so ratios are taken inside a round and their
median is reported; the order turns from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ffn_fusion.processes import Progress

Name = TypeVar("Name")


@dataclass(frozen=True)
class Workload:
    """``batch`` prompts of ``context`` tokens, each followed by ``new_tokens`` beyond the first one."""

    batch: int
    context: int
    new_tokens: int


@dataclass(frozen=True)
class Measurement:
    """Seconds of a prefill, which ends with the first token, and of all decode steps after it."""

    prefill_s: float
    decode_s: float


class Runner(Protocol):
    """A model that is loaded in its engine."""

    def warm_up(self, workload: Workload) -> int | None:
        """Measure once without counting it. Returns the peak memory in bytes, or None if it is unknown."""

    def run(self, workload: Workload) -> Measurement:
        """Measure once."""


@dataclass
class Measurements:
    """All measurements by (model, workload), in the order of the rounds, and the memory peaks."""

    rounds: dict[tuple[str, Workload], list[Measurement]] = field(default_factory=dict)
    memory: dict[tuple[str, Workload], int | None] = field(default_factory=dict)


def interleave(
    runners: Mapping[str, Runner], workloads: Sequence[Workload], rounds: int, progress: Progress
) -> Measurements:
    """Run every model under every workload: once to warm up, then ``rounds`` times."""
    found = Measurements()
    total = len(workloads) * (rounds + 1)
    for place, workload in enumerate(workloads):
        for name, runner in runners.items():
            found.memory[name, workload] = runner.warm_up(workload)
        progress("timing", place * (rounds + 1) + 1, total)
        for turn in range(1, rounds + 1):
            for name in turned(list(runners), turn):
                found.rounds.setdefault((name, workload), []).append(runners[name].run(workload))
            progress("timing", place * (rounds + 1) + turn + 1, total)
    return found


def turned(names: Sequence[Name], turn: int) -> list[Name]:
    """The same in turn, another one first every time."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]
