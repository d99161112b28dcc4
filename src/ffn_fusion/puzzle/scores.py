"""Replace-1 scores: every entry of a library alone in the parent, all of them in one pass over the parent's blocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.analysis.passes import Pass, PassEstimate, carry_out, estimate_pass
from ffn_fusion.blockwise.edits import Edit, ReplaceBlocks
from ffn_fusion.blockwise.head import Divergence, standard_error
from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import PARENT
from ffn_fusion.blueprint import PARTS, AttentionSpec, Block, Blueprint, Parent
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import block_spec
from ffn_fusion.families.layout import outer_tensors, sub_block_parameters
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.puzzle.space import Changed, Entry
from ffn_fusion.puzzle.store import Library, LibraryWeights, StoredEntry
from ffn_fusion.search import table
from ffn_fusion.search.table import CostRow, ScoreRow
from ffn_fusion.surgery.child import Child

_PASS = "scores"


@dataclass(frozen=True)
class Metric:
    """A way to score: windows of a variant and of the parent -> one number for each window."""

    name: str
    about: str
    of: Callable[[Divergence, Divergence], Tensor]


METRICS = (
    Metric("kl", "KL to the parent, nats a token", lambda child, parent: child.kl_N),
    Metric(
        "loss", "increase of the language-model loss, nats a token", lambda child, parent: child.loss_N - parent.loss_N
    ),
    Metric("cosine", "cosine distance of the last hidden states", lambda child, parent: child.hidden_distance_N),
)


@dataclass(frozen=True)
class Scoring:
    """The scoring of a library's entries.

    Args:
        entries: what is scored, each with what the library keeps of it; None: as surgery makes it.
        texts: windows, all of one length.
        memory, folder: see ``ffn_fusion.analyze``; the folder is the work's own.
    """

    parent: Checkpoint
    library: Library | None
    entries: Sequence[tuple[Entry, StoredEntry | None]]
    texts: Sequence[TokenWindows]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    memory: int | None = None
    folder: Path | None = None

    @cached_property
    def ids_NT(self) -> Tensor:  # noqa: N802
        return torch.from_numpy(np.concatenate([text.ids_NT for text in self.texts]))

    @cached_property
    def stack(self) -> Stack:
        """The parent."""
        return Stack(self.parent, dtype=self.dtype, device=current().device(self.device))

    @cached_property
    def pass_(self) -> Pass:
        edits = {entry.name: self._edit(entry, stored) for entry, stored in self.entries}
        return Pass(_PASS, edits, tuple(edits))

    def estimate(self, pace: Pace | None = None) -> PassEstimate:
        """Return what it will take. Raises: UsageError: too little memory. OutputError: too little disk."""
        return estimate_pass(self.pass_, self.stack, self.ids_NT, self.parent.nbytes, self.memory, self._place, pace)

    @property
    def _place(self) -> Path | None:
        here = current()
        return self.folder / f"process-{here.rank}-of-{here.world}" if self.folder else None

    def _edit(self, entry: Entry, stored: StoredEntry | None) -> Edit:
        identity = self.parent.spec.parent(self.parent.name, self.parent.revision)
        blueprint, at = entry.blueprint(identity), entry.place(identity)
        child = Child(self.parent, blueprint, 1)
        if self.library and stored and stored.weights:
            child = Child(self.parent, blueprint, 1, LibraryWeights(self.library, [(at, stored)], child.spec))
        stack = Stack(child, dtype=self.dtype, device=self.stack.device, resident=False)
        blocks = tuple(range(at, at + len(entry.kept_blocks)))
        return ReplaceBlocks(entry.first, entry.last, stack, blocks, same_attention=entry.part == "ffn")


@together
def score_entries(scoring: Scoring, *, progress: Progress = silent) -> dict[str, tuple[ScoreRow, ...]]:
    """Score each entry alone in the parent; returns a table of scores by the name of each metric."""
    kept = [stored.model_dump_json() for _, stored in scoring.entries if stored]
    key = "\n".join((scoring.parent.fingerprint, scoring.parent.files_state, json.dumps(kept)))
    found = carry_out(
        scoring.pass_, scoring.estimate(), scoring.stack, scoring.ids_NT, scoring._place, key, progress
    ).divergences
    return {metric.name: _rows(scoring, metric, found) for metric in METRICS}


def _rows(scoring: Scoring, metric: Metric, found: Mapping[str, Divergence]) -> tuple[ScoreRow, ...]:
    identity = scoring.parent.spec.parent(scoring.parent.name, scoring.parent.revision)
    rows = [_whole(identity, metric)]
    for entry, _ in scoring.entries:
        values = metric.of(found[entry.name], found[PARENT])
        error = standard_error(values)
        rows.append(
            ScoreRow(
                first_block=entry.first,
                last_block=entry.last,
                part=entry.part,
                choice=entry.choice,
                score=max(0.0, float(values.mean())) if metric.name == "kl" else float(values.mean()),
                standard_error=error if np.isfinite(error) else None,
                metric=metric.name,
                blocks=entry.blocks if entry.part == "block" else entry.blocks[0].part(entry.part),
            )
        )
    return tuple(rows)


def _whole(parent: Parent, metric: Metric) -> ScoreRow:
    last = len(parent.blocks) - 1
    return ScoreRow(
        first_block=0, last_block=last, part="model", choice=table.PARENT, score=0.0, metric=metric.name, blocks=parent
    )


def count_costs(spec: ModelSpec, parent: Parent, entries: Sequence[Entry], element_size: int) -> tuple[CostRow, ...]:
    """Return what each entry takes, and each sub-block of the parent as it is, counted: no seconds.

    Args:
        element_size: bytes of a weight as it is served, and of a number in the KV cache.
    """
    whole = Blueprint.identity(parent).blocks
    rows = [_cost(spec, entry.part, entry.choice, entry.blocks, element_size) for entry in entries]
    for block in whole:
        parts = (part for part in PARTS if block.part(part).present)
        rows += [_cost(spec, part, table.KEPT, (block,), element_size) for part in parts]
    rest = sum(int(np.prod(shape)) for shape in outer_tensors(spec).values())
    rows.append(
        CostRow(
            first_block=0, last_block=len(whole) - 1, part="model", choice=table.REST,
            parameters=rest, weight_bytes=rest * element_size, kv_bytes=0, steps=0,
        )
    )  # fmt: skip
    return tuple(rows)


def _cost(spec: ModelSpec, part: Changed, choice: str, blocks: Sequence[Block], element_size: int) -> CostRow:
    """What is counted: the child's sub-blocks as they will be, not padded."""
    sizes = [block_spec(spec, block, 1) for block in blocks]
    made = [found for block in sizes for each in PARTS if part in ("block", each) and (found := block.part(each))]
    parameters = sum(sub_block_parameters(spec, sub_block) for sub_block in made)
    kv_heads = sum(sub_block.kv_heads for sub_block in made if isinstance(sub_block, AttentionSpec))
    return CostRow(
        first_block=blocks[0].parent_blocks[0],
        last_block=blocks[-1].parent_blocks[1],
        part=part,
        choice=choice,
        parameters=parameters,
        weight_bytes=parameters * element_size,
        kv_bytes=2 * kv_heads * spec.head_dim * element_size,
        steps=len(made),
    )
