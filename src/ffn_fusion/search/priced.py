"""What all candidates take of every resource under one load, as budgets need it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.search.budgets import RESOURCES, Amount, Load
from ffn_fusion.search.candidates import Candidate, Candidates, Scenario, Seconds

Floats = npt.NDArray[np.float64]


class Priced:
    """What all candidates take of every resource that the tables know, under one load.

    Attributes:
        takes: [candidates] of each resource, by its word.
        rest: what the model takes outside of its blocks.
        notes: what had to be assumed, and what wasn't timed under this load.
    """

    def __init__(self, candidates: Candidates, load: Load) -> None:
        self.candidates, self.load = candidates, load
        self.takes: dict[str, Floats] = {}
        self.rest: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()
        self._refused: dict[str, DataError] = {}
        rows = [
            *candidates.rows,
            Candidate(candidates.rows[0].key, (), 0, 0, candidates.rest, candidates.rest_seconds),
        ]
        for name, values in (self._counted(rows) | self._timed(rows)).items():
            self.takes[name], self.rest[name] = values[:-1], float(values[-1])
        kept = np.array([row.kept for row in candidates.rows])
        self.parent = {name: self.rest[name] + float(values[kept].sum()) for name, values in self.takes.items()}
        """What the parent takes."""

    def known(self) -> list[str]:
        """The resources that the tables say enough about, in the order of :data:`RESOURCES`."""
        return [name for name in RESOURCES if name in self.takes and (name != "cost" or self.load.price)]

    def bound(self, name: str, amount: Amount) -> float:
        """The largest sum that a budget allows.

        Raises:
            UsageError: the tables don't say what candidates take of it, or a price is missing.
            DataError: nothing was timed at this batch, or no prefill of as many tokens.
        """
        if name in self._refused:
            raise self._refused[name]
        if name == "cost" and not self.load.price:
            raise UsageError("a budget for the cost of tokens needs the price of an hour", "give --price")
        if name not in self.takes:
            missing = ", ".join(sorted(RESOURCES[name].needs - self.candidates.known))
            raise UsageError(f"a budget for {name} needs {missing} in the costs table", "fill that column")
        resource, parent = RESOURCES[name], self.parent[name]
        if amount.relative:
            return parent / amount.value if resource.least else parent * amount.value
        return resource.bound(amount.value, self.load)

    def _counted(self, rows: list[Candidate]) -> dict[str, Floats]:
        def column(name: str) -> Floats:
            return np.array([getattr(row.costs, name) for row in rows], dtype=np.float64)

        found = {"steps": column("steps"), "parameters": column("parameters"), "kv": column("kv_bytes")}
        found["memory"] = column("weight_bytes") + self.load.tokens * column("kv_bytes")
        return {name: values for name, values in found.items() if RESOURCES[name].needs <= self.candidates.known}

    def _timed(self, rows: list[Candidate]) -> dict[str, Floats]:
        known, load = self.candidates.known, self.load
        found: dict[str, Floats] = {}
        if "prefill_seconds" in known:
            self._try(found, "first-token", lambda: self._at(rows, 0, load.tokens_in, exact=True))
        if "decode_seconds" in known:
            tokens = load.tokens_in + load.tokens_out // 2
            self._try(found, "latency", lambda: self._at(rows, 1, tokens, exact=False))
        if "latency" in found and "first-token" not in self._refused:
            decode = load.tokens_out * found["latency"]
            found["request"] = decode + found["first-token"] if "first-token" in found else decode
            found["throughput"] = found["cost"] = found["request"]
            if "first-token" not in found:
                self._note("the costs table has no prefill_seconds: requests are their decode steps alone")
        return found

    def _try(self, found: dict[str, Floats], name: str, seconds: Callable[[], Floats]) -> None:
        """Seconds that weren't timed under this load are refused once a budget needs them, and noted until then."""
        try:
            found[name] = seconds()
        except DataError as error:
            self._refused |= dict.fromkeys((name, "request", "throughput", "cost"), error)
            self._note(error.message)

    def _at(self, rows: list[Candidate], which: int, context: int, *, exact: bool) -> Floats:
        """Seconds between the nearest contexts that were timed, by linear interpolation."""
        batch = self.load.batch
        contexts = [at.context for at in self.candidates.scenarios if at.batch == batch]
        if not contexts:
            timed = ", ".join(str(b) for b in sorted({at.batch for at in self.candidates.scenarios}))
            raise DataError(f"nothing was timed at batch {batch}; the costs table has batch {timed}", "give --batch")
        low, high = contexts[0], contexts[-1]
        within = min(max(context, low), high)
        if within != context:
            if exact:
                raise DataError(
                    f"no prefill of {context} tokens was timed at batch {batch}; the costs table has {low} to {high}",
                    "give --tokens-in, or add the seconds",
                )
            self._note(f"decode steps are taken at {within} tokens of context, the nearest to {context} that was timed")
        nothing = Seconds(0.0, 0.0)
        values = np.array([[row.seconds.get(Scenario(batch, c), nothing)[which] for c in contexts] for row in rows])
        after = int(np.searchsorted(contexts, within))
        before = max(after - 1, 0)
        share = (within - contexts[before]) / ((contexts[after] - contexts[before]) or 1)
        return np.asarray((1 - share) * values[:, before] + share * values[:, after], dtype=np.float64)

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)
