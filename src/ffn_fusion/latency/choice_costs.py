"""What the choices of a library take: a table of costs with seconds, sub-block by sub-block, measured or modelled.

A model's time is taken as the sum of its sub-blocks' and its head's. What that leaves out, such as the embedding and
what an engine does between blocks, is the same for every child but for its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ffn_fusion.blueprint import PARTS, Parent
from ffn_fusion.errors import DataError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.child_spec import block_spec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.latency.hardware import work_seconds
from ffn_fusion.latency.machines import Machine
from ffn_fusion.latency.sub_block_costs import SubBlocks, shape_of
from ffn_fusion.latency.timing import Phase
from ffn_fusion.latency.work import ITEM_BYTES, Setting, Step, SubBlock, head_work, sub_block_work
from ffn_fusion.puzzle.scores import count_costs
from ffn_fusion.puzzle.space import Entry
from ffn_fusion.search.table import CostRow, Key

_PHASES: tuple[Phase, ...] = ("prefill", "decode")


class Source(Protocol):
    """Where seconds come from.

    Attributes:
        weight_size, dense_size, kv_size: bytes of a weight in a block and outside, and of a number in the KV cache.
        scenarios: (batch, context) pairs that it knows the seconds of.
    """

    @property
    def weight_size(self) -> float: ...
    @property
    def dense_size(self) -> float: ...
    @property
    def kv_size(self) -> float: ...
    @property
    def scenarios(self) -> Sequence[tuple[int, int]]: ...

    def seconds(self, spec: ModelSpec, part: SubBlock | None, phase: Phase, batch: int, context: int) -> float:
        """Return the seconds of a sub-block, or of the head (None), in a prefill of ``context`` tokens or a step."""


@dataclass(frozen=True)
class Measured:
    """Seconds that ``bench --sub-blocks`` measured."""

    timings: SubBlocks

    @property
    def weight_size(self) -> float:
        return {"float64": 8, "float32": 4}.get(self.timings.dtype, 2)

    dense_size = kv_size = weight_size

    @property
    def scenarios(self) -> Sequence[tuple[int, int]]:
        return sorted({(timing.batch, timing.context) for timing in self.timings.timings})

    def seconds(self, spec: ModelSpec, part: SubBlock | None, phase: Phase, batch: int, context: int) -> float:
        shape = shape_of(spec, part)
        try:
            return self.timings.get(shape, phase, batch, context).median_s
        except StopIteration:
            raise DataError(
                f"{shape.words} at hidden size {shape.hidden_size} was not timed in a {phase} of batch {batch} and "
                f"context {context}",
                "time every sub-block of the library: ffn-fusion bench MODEL --sub-blocks",
            ) from None


@dataclass(frozen=True)
class Modelled:
    """Seconds by the hardware model, on machines that aren't here.

    Args:
        setting: devices and precision; its batch and context are replaced by those of each scenario.
    """

    machine: Machine
    setting: Setting
    scenarios: Sequence[tuple[int, int]]

    @property
    def weight_size(self) -> float:
        return ITEM_BYTES[self.setting.weights]

    @property
    def dense_size(self) -> float:
        return ITEM_BYTES[self.setting.dense]

    @property
    def kv_size(self) -> float:
        return ITEM_BYTES[self.setting.kv]

    def seconds(self, spec: ModelSpec, part: SubBlock | None, phase: Phase, batch: int, context: int) -> float:
        setting = replace(self.setting, batch=batch, context=context)
        step = Step(tokens=context) if phase == "prefill" else Step(past=context)
        work = sub_block_work(spec, part, setting, step) if part else head_work(spec, setting, step)
        return work_seconds(self.machine, work, setting.devices).total


def costs_of(
    spec: ModelSpec,
    parent: Parent,
    entries: Sequence[Entry],
    source: Source,
    width_multiple: int = WIDTH_MULTIPLE,
) -> list[CostRow]:
    """Return what every entry takes, every sub-block of the parent as it is, and the rest of the model.

    There is a row for each scenario of the source. Sums over a model's rows are its parameters, bytes and seconds.

    Args:
        spec: of the parent, as ``parent`` is.
        width_multiple: that FFNs of children are padded to, which takes time and no parameters that count.

    Raises:
        DataError: a shape that was not timed.
    """
    contents = {Key(entry.first, entry.last, entry.part, entry.choice): entry for entry in entries}
    rows = []
    for row in count_costs(spec, parent, entries, element_size=1):
        rest = row.part == "model"
        made: list[SubBlock | None] = [None] if rest else [*_made(spec, row, contents.get(row.key), width_multiple)]
        sizes = {
            "weight_bytes": round((row.parameters or 0) * (source.dense_size if rest else source.weight_size)),
            "kv_bytes": round((row.kv_bytes or 0) * source.kv_size),
        }
        for batch, context in source.scenarios:
            took = {
                f"{phase}_seconds": sum(source.seconds(spec, part, phase, batch, context) for part in made)
                for phase in _PHASES
            }
            rows.append(row.model_copy(update={**sizes, "batch": batch, "context": context, **took}))
    return rows


def timed_model(spec: ModelSpec, entries: Sequence[Entry], width_multiple: int = WIDTH_MULTIPLE) -> ModelSpec:
    """Return a model with every sub-block of the entries and of the parent, for ``time_sub_blocks`` to time."""
    blocks = (block_spec(spec, block, width_multiple) for entry in entries for block in entry.kept_blocks)
    return replace(spec, blocks=(*spec.blocks, *blocks))


def _made(spec: ModelSpec, row: CostRow, entry: Entry | None, width_multiple: int) -> Iterator[SubBlock]:
    """Yield the sub-blocks that a row stands for: an entry's, or the parent's own."""
    blocks = (
        [block_spec(spec, block, width_multiple) for block in entry.kept_blocks]
        if entry
        else [spec.blocks[row.first_block]]
    )
    for block in blocks:
        yield from (made for part in PARTS if row.part in ("block", part) and (made := block.part(part)))
