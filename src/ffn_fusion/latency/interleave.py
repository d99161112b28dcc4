"""Time several models in turn: every round runs each of them once, in any engine.

Runs that follow one another see the same other load on the machine, so ratios are taken within a round and their median
is reported. The order rotates from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ffn_fusion.processes import Progress

Name = TypeVar("Name")


@dataclass(frozen=True)
class Workload:
    """``batch`` prompts of ``context`` tokens, each followed by a first new token and ``new_tokens`` more."""

    batch: int
    context: int
    new_tokens: int


@dataclass(frozen=True)
class Measurement:
    """Seconds of a prefill, which ends with the first new token, and of all decode steps after it."""

    prefill_s: float
    decode_s: float


class Runner(Protocol):
    """A model loaded in its engine."""

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
    """Return the names rotated by ``turn`` places."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]
