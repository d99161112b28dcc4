"""Random small searches, and every possible child of one: what the programme is checked against."""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum

from hypothesis import strategies as st

from ffn_fusion.blueprint import PARTS
from ffn_fusion.blueprint.choices import Costs
from ffn_fusion.search.budgets import Load
from ffn_fusion.search.candidates import Candidate, Candidates, Cell, Scenario, Seconds
from ffn_fusion.search.priced import Priced
from ffn_fusion.search.problem import Problem
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.search.table import Key

KNOWN = frozenset({"parameters", "weight_bytes", "kv_bytes", "steps", "prefill_seconds", "decode_seconds"})
WORDS = ("none", "linear", "half", "tenth")

# Few distinct scores and costs, so that many sums meet a budget exactly; and some of any size.
_scores = st.one_of(st.integers(0, 8).map(lambda n: n / 4), st.floats(0, 3, allow_subnormal=False))
_seconds = st.one_of(st.integers(0, 8).map(lambda n: n / 8), st.floats(0, 1, allow_subnormal=False))


@st.composite
def _candidate(draw: st.DrawFn, key: Key, cells: tuple[Cell, ...]) -> Candidate:
    small = st.integers(0, 6) if key.choice != "kept" else st.integers(1, 6)
    costs = Costs(draw(small), 1000 * draw(small), 2000 * draw(small), 16 * draw(small))
    least = 0.125 if key.choice == "kept" else 0.0
    seconds = {Scenario(b, 16): Seconds(least + draw(_seconds), least + draw(_seconds)) for b in (1, 4)}
    score = 0.0 if key.choice == "kept" else draw(_scores)
    return Candidate(key, cells, score, 0.0 if key.choice == "kept" else score / 10, costs, seconds)


@st.composite
def candidates(draw: st.DrawFn, most: int = 4) -> Candidates:
    """Up to ``most`` blocks, kept by parts or as a whole, some without an attention or an FFN; choices for parts, for
    whole blocks and for runs of blocks or parts."""
    blocks = draw(st.integers(2, most))
    cells: list[Cell] = []
    keys: list[Key] = []
    for i in range(blocks):
        parts = draw(st.sampled_from([PARTS, PARTS, PARTS, ("attention",), ("ffn",), None]))
        cells += [(i, part) for part in parts or PARTS]
        keys += [Key(i, i, part, "kept") for part in parts or ("block",)]
    for _ in range(draw(st.integers(3, 12))):
        first = draw(st.integers(0, blocks - 1))
        last = draw(st.integers(first, min(first + 2, blocks - 1)))
        part = draw(st.sampled_from(["attention", "ffn", "block"]))
        keys.append(Key(first, last, part, draw(st.sampled_from(WORDS))))
    rows = []
    for key in dict.fromkeys(keys):
        there = range(key.first_block, key.last_block + 1)
        covered = tuple(c for c in cells if c[0] in there and key.part in ("block", c[1]))
        if covered and (key.part == "block" or len(covered) == len(there)):
            rows.append(draw(_candidate(key, covered)))
    rest = draw(_candidate(Key(0, 0, "model", "rest"), ()))
    return Candidates(blocks, tuple(sorted(rows, key=lambda row: row.key)), KNOWN, rest.costs, rest.seconds)


_share = st.sampled_from([1, 1, 1, 1.05, 0.98, 0.8])
_BUDGETS = {
    "memory": "max_memory",
    "latency": "max_latency",
    "first-token": "max_first_token",
    "request": "max_request",
    "throughput": "min_throughput",
    "steps": "max_steps",
    "parameters": "max_parameters",
    "kv": "max_kv",
}


@st.composite
def settings(draw: st.DrawFn, of: Candidates) -> SearchSettings:
    """Budgets that some child meets exactly, or nearly; and maybe counts, pins and uniform parts."""
    batches = draw(st.sampled_from([(1,), (4,), (1, 4)]))
    priced = Priced(of, Load(batches[0], 16, 8))
    child = list(draw(st.sampled_from(list(every_child(of)))))
    given: dict[str, object] = {}
    for name in draw(st.lists(st.sampled_from(list(_BUDGETS)), min_size=1, max_size=3, unique=True)):
        total = max(priced.rest[name] + fsum(priced.takes[name][child]), priced.parent[name] / 1000)
        ratio = (priced.parent[name] / total if name == "throughput" else total / priced.parent[name]) * draw(_share)
        given[_BUDGETS[name]] = f"{ratio!r}x"
    words = sorted({row.key.choice for row in of.rows})
    if draw(st.integers(0, 3)) == 0:
        given["at_most"] = [f"{draw(st.sampled_from(words))}={draw(st.integers(1, 3))}"]
    if draw(st.integers(0, 3)) == 0:
        given["at_least"] = [f"{draw(st.sampled_from(words))}={draw(st.integers(0, 2))}"]
    if draw(st.integers(0, 7)) == 0:
        row = draw(st.sampled_from(of.rows))
        given["pin"] = [f"{row.key.first_block}={row.key.choice}"]
    if draw(st.integers(0, 7)) == 0:
        given["uniform"] = [draw(st.sampled_from(PARTS))]
    return SearchSettings.model_validate({**given, "tokens_in": 16, "tokens_out": 8, "batch": batches})


def every_child(of: Candidates) -> Iterator[tuple[int, ...]]:
    """Every way to cover each cell exactly once, as places of candidates."""

    def extend(left: frozenset[Cell]) -> Iterator[tuple[int, ...]]:
        if not left:
            yield ()
            return
        cell = min(left)
        for c, row in enumerate(of.rows):
            if cell in row.cells and left.issuperset(row.cells):
                for more in extend(left.difference(row.cells)):
                    yield (c, *more)

    yield from (tuple(sorted(child)) for child in extend(frozenset(of.cells)))


def keeps_to(problem: Problem, asked: SearchSettings, child: tuple[int, ...]) -> bool:
    """Whether a child is within all budgets and rules, by their words and without the programme's rows.

    A sum may be above its budget by what rounding can add up to.
    """
    rows = problem.candidates.rows
    for name, bound in problem.bounds.items():
        total = problem.priced.rest[name] + fsum(problem.priced.takes[name][list(child)])
        inside = abs(bound - problem.priced.rest[name]) or 1.0
        if total > bound + 1e-9 * inside:
            return False
    words = [rows[c].key.choice for c in child]
    if any(words.count(count.word.choice) > count.number for count in asked.at_most):
        return False
    if any(words.count(count.word.choice) < count.number for count in asked.at_least):
        return False
    for part in asked.uniform:
        if len({rows[c].key.choice for c in child for cell in rows[c].cells if cell[1] == part}) > 1:
            return False
    for pin in asked.pin:
        for block in pin.blocks:
            could = {
                cell for row in rows if row.key.choice == pin.word.choice for cell in row.cells if cell[0] == block
            }
            if any(could & set(rows[c].cells) and rows[c].key.choice != pin.word.choice for c in child):
                return False
    return True


def score_of(of: Candidates, child: tuple[int, ...]) -> float:
    return fsum(of.rows[c].score for c in child)
