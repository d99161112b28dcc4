"""Everything that a search may choose: scores and costs joined, one candidate for each key of the tables. No torch.

A candidate covers cells. A cell is the attention, or the FFN, of one parent block; every cell that the parent has is
covered by exactly one chosen candidate, and there is always one called ``kept``, which is what the parent has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import nan
from pathlib import Path
from typing import NamedTuple

from ffn_fusion.blueprint import PARTS, Block, KeptSubBlock, Kind, Parent, Part
from ffn_fusion.blueprint.choices import ChoiceTable, Costs
from ffn_fusion.errors import DataError
from ffn_fusion.search.table import KEPT, CostRow, Key, ScoreRow, read_costs, read_scores

Cell = tuple[int, Part]
Content = tuple[Block, ...] | Kind
"""What a child has: its blocks, or the kind of one part."""
_COUNTED = tuple(f.name for f in fields(Costs))
_TIMED = ("prefill_seconds", "decode_seconds")
_NOTHING = Costs()


class Scenario(NamedTuple):
    """What seconds were measured at: sequences at a time, and tokens of each prompt or in each KV cache."""

    batch: int
    context: int


class Seconds(NamedTuple):
    """Seconds of one prefill, and of one decode step, of a whole batch."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Candidate:
    """One choice with its score and costs.

    Args:
        cells: what it covers of the parent.
        error: standard error of ``score``, NaN where it isn't known.
        seconds: by scenario; empty where nothing was timed.
        content: what the child has there; None where the tables don't say.
    """

    key: Key
    cells: tuple[Cell, ...]
    score: float
    error: float
    costs: Costs
    seconds: Mapping[Scenario, Seconds] = field(default_factory=dict)
    content: Content | None = None

    @property
    def kept(self) -> bool:
        return self.key.choice == KEPT

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What its attentions and FFNs are, as far as the tables say it."""
        blocks = self.content if isinstance(self.content, tuple) else ()
        alone = (self.content,) if isinstance(self.content, Kind) else ()
        return (*alone, *(block.part(part) for block in blocks for part in PARTS))


@dataclass(frozen=True)
class Candidates:
    """All candidates for one parent.

    Args:
        blocks: how many blocks the parent has.
        known: the columns of costs that are filled; the others are 0 in ``costs`` and ``seconds``.
        rest: costs of what isn't in any block: embeddings, head, what an engine does in between.
        parent: None where neither table describes it.
    """

    blocks: int
    rows: tuple[Candidate, ...]
    known: frozenset[str]
    rest: Costs = _NOTHING
    rest_seconds: Mapping[Scenario, Seconds] = field(default_factory=dict)
    metric: str = "kl"
    parent: Parent | None = None

    @cached_property
    def kept(self) -> tuple[Candidate, ...]:
        """The candidates that make the parent."""
        return tuple(row for row in self.rows if row.kept)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that the parent has, in order."""
        return tuple(sorted(cell for row in self.kept for cell in row.cells))

    @cached_property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The batches and contexts that seconds are known for."""
        return tuple(sorted(self.rows[0].seconds))


def read_tables(scores: Path, costs: Path) -> Candidates:
    """Read and join two tables.

    Raises:
        DataError: a table can't be read, or they don't fit each other; the line names the choice.
    """
    return join(read_scores(scores), read_costs(costs))


def join(scores: Sequence[ScoreRow], costs: Sequence[CostRow]) -> Candidates:
    """Join the rows of a scores table with those of a costs table.

    Raises:
        DataError: a choice that only one of them has (but ``kept``, whose score is 0), a key with two values, a block
            without ``kept``, a cost that is known of some choices only.
    """
    by_key = _scores_by_key(scores)
    counted, timed = _costs_by_key(costs)
    parent = next((row.blocks for key, row in by_key.items() if isinstance(row.blocks, Parent)), None)
    by_key = {key: row for key, row in by_key.items() if key.part != "model"}
    rest = [key for key in counted if key.part == "model"]
    keys = [key for key in counted if key.part != "model"]
    _check_keys(by_key, keys)
    cells = _cells_of([key for key in keys if key.choice == KEPT])
    blocks = 1 + max(key.last_block for key in keys)
    _check_cover(blocks, cells, keys)
    if parent and len(parent.blocks) != blocks:
        raise DataError(
            f"the scores' parent has {len(parent.blocks)} blocks, the costs' {blocks}", "take tables of one model"
        )
    known = _known(counted, timed, keys)
    rest_seconds = _seconds(timed[rest[0]]) if rest else {}
    if rest_seconds and rest_seconds.keys() != timed[keys[0]].keys():
        raise DataError(
            "the rest of the model was timed at other batches and contexts than its blocks",
            "give its seconds at each of them, or at none",
        )
    metrics = sorted({row.metric for row in by_key.values() if row.key.choice != KEPT})
    if len(metrics) > 1:
        raise DataError(f"the scores are of several metrics: {', '.join(metrics)}", "keep the rows of one of them")
    return Candidates(
        blocks=blocks,
        rows=tuple(_candidate(key, by_key.get(key), counted[key], timed[key], cells) for key in sorted(keys)),
        known=known,
        rest=_costs(counted[rest[0]]) if rest else _NOTHING,
        rest_seconds=rest_seconds,
        metric=metrics[0] if metrics else "kl",
        parent=parent,
    )


def from_choices(table: ChoiceTable) -> Candidates:
    """Read everything measured in evidence (``analysis.choices``) as candidates for whole blocks."""
    kept = [
        Candidate(Key(i, i, "block", KEPT), _all_cells(table.parent, range(i, i + 1)), 0.0, 0.0, costs)
        for i, costs in enumerate(table.kept)
    ]
    rows: dict[Key, Candidate] = {}
    for choice in table.rows:
        words = (block.part(part).words(part) for block in choice.blocks for part in PARTS)
        key = Key(choice.first, choice.last, "block", ", ".join(filter(None, words)))
        if key not in rows or choice.score < rows[key].score:
            cells = _all_cells(table.parent, choice.covers)
            rows[key] = Candidate(key, cells, choice.score, choice.error, choice.costs, content=choice.blocks)
    known = frozenset(name for name in _COUNTED if any(getattr(costs, name) for costs in table.kept))
    return Candidates(len(table.parent.blocks), (*kept, *rows.values()), known, parent=table.parent)


def _all_cells(parent: Parent, blocks: Iterable[int]) -> tuple[Cell, ...]:
    return tuple((i, part) for i in blocks for part in PARTS if parent.blocks[i].part(part))


# ---- joining


def _scores_by_key(rows: Iterable[ScoreRow]) -> dict[Key, ScoreRow]:
    found: dict[Key, ScoreRow] = {}
    for row in rows:
        if found.setdefault(row.key, row) != row:
            raise DataError(f"two different scores of {row.key}", "keep one of the rows")
    return found


def _costs_by_key(rows: Iterable[CostRow]) -> tuple[dict[Key, CostRow], dict[Key, dict[Scenario, CostRow]]]:
    """Return a row for each key, and a row for each key and scenario."""
    counted: dict[Key, CostRow] = {}
    timed: dict[Key, dict[Scenario, CostRow]] = defaultdict(dict)
    for row in rows:
        first = counted.setdefault(row.key, row)
        for name in _COUNTED:
            if getattr(first, name) != getattr(row, name):
                raise DataError(
                    f"two different {name} of {row.key}: {getattr(first, name)} and {getattr(row, name)}",
                    "its rows, one for each batch and context, say the same of what doesn't depend on them",
                )
        if row.batch and row.context:
            scenario = Scenario(row.batch, row.context)
            if timed[row.key].setdefault(scenario, row) != row:
                raise DataError(
                    f"two different costs of {row.key} at batch {row.batch}, context {row.context}", "keep one row"
                )
    rests = [key for key in counted if key.part == "model"]
    if len(rests) > 1:
        raise DataError(f"two rows for the rest of the model: {rests[0]} and {rests[1]}", "keep one of them")
    return counted, timed


def _check_keys(scores: Mapping[Key, ScoreRow], costs: Sequence[Key]) -> None:
    if not costs:
        raise DataError("the costs table has no row of a block", "give a row for each choice")
    for these, others, table, other in ((scores, costs, "scores", "costs"), (costs, scores, "costs", "scores")):
        alone = sorted(key for key in set(these) - set(others) if key.choice != KEPT or table == "scores")
        if not alone:
            continue
        counts = [1 + max((key.last_block for key in keys), default=-1) for keys in (scores, costs)]
        models = f"the scores are of {counts[0]} blocks, the costs of {counts[1]}: are they of one model?"
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise DataError(
            f"the {table} table alone has {alone[0]}{more}",
            models if counts[0] != counts[1] else f"add it to the {other} table, or leave it out",
        )


def _cells_of(kept: Iterable[Key]) -> dict[Cell, Key]:
    """The parent's cells, each with the ``kept`` that covers it."""
    cells: dict[Cell, Key] = {}
    for key in kept:
        for part in PARTS:
            if key.part in ("block", part) and cells.setdefault((key.first_block, part), key) != key:
                raise DataError(
                    f"block {key.first_block} is kept both by parts and as a whole", "leave one of the two ways out"
                )
    return cells


def _check_cover(blocks: int, cells: Mapping[Cell, Key], keys: Iterable[Key]) -> None:
    there = {block for block, _ in cells}
    missing = next((i for i in range(blocks) if i not in there), None)
    if missing is not None:
        raise DataError(
            f"block {missing} of {blocks} has no {KEPT!r} in the costs table", "say what each block takes as it is"
        )
    for key in keys:
        for block in range(key.first_block, key.last_block + 1):
            if key.part != "block" and (block, key.part) not in cells:
                raise DataError(
                    f"{key} covers the {key.part} of block {block}, which has no {KEPT!r}",
                    "say what it takes as it is, or leave the choice out if the parent has none",
                )


def _known(
    counted: Mapping[Key, CostRow], timed: Mapping[Key, Mapping[Scenario, CostRow]], keys: Sequence[Key]
) -> frozenset[str]:
    """The columns that are filled; a column is for all choices or for none."""
    known = set()
    scenarios = {scenario for key in keys for scenario in timed.get(key, {})}
    for name in (*_COUNTED, *_TIMED):
        where: dict[str, CostRow | None]
        if name in _COUNTED:
            where = {str(key): counted[key] for key in keys}
        else:
            where = {
                f"{key} at batch {batch}, context {context}": timed[key].get(Scenario(batch, context))
                for key in keys
                for batch, context in scenarios
            }
        missing = [place for place, row in where.items() if row is None or getattr(row, name) is None]
        if missing and len(missing) < len(where):
            raise DataError(f"no {name} of {missing[0]}", "fill the column for all choices, or for none")
        if where and not missing:
            known.add(name)
    return frozenset(known)


def _candidate(
    key: Key,
    score: ScoreRow | None,
    costs: CostRow,
    timed: Mapping[Scenario, CostRow],
    cells: Mapping[Cell, Key],
) -> Candidate:
    there = range(key.first_block, key.last_block + 1)
    content = None if score is None or isinstance(score.blocks, Parent) else score.blocks
    if content is None and key.choice == KEPT and key.part != "block":
        content = KeptSubBlock(source=key.first_block)
    error = score.standard_error if score else 0.0
    return Candidate(
        key,
        tuple((i, part) for i in there for part in PARTS if key.part in ("block", part) and (i, part) in cells),
        max(score.score, 0.0) if score and score.metric == "kl" else score.score if score else 0.0,
        nan if error is None else error,
        _costs(costs),
        _seconds(timed),
        content,
    )


def _costs(row: CostRow) -> Costs:
    return Costs(**{name: getattr(row, name) or 0 for name in _COUNTED})


def _seconds(timed: Mapping[Scenario, CostRow]) -> dict[Scenario, Seconds]:
    return {at: Seconds(row.prefill_seconds or 0.0, row.decode_seconds or 0.0) for at, row in timed.items()}
