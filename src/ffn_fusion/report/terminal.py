"""Tables and diagrams for the terminal. rich and nothing heavier: this is imported by every command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.families.layout import attention_tensors, ffn_tensors, model_tensors
from ffn_fusion.families.spec import BlockSpec, ModelSpec
from ffn_fusion.report.diagram import block_diagram
from ffn_fusion.report.evidence_tables import ONE_OF, importance_grid, reverse_order_grid
from ffn_fusion.report.sub_block_table import sub_block_grid, sub_block_place
from ffn_fusion.report.tables import (
    NOTHING,
    Grid,
    byte_count,
    count,
    latency_grid,
    latency_place,
    plan_grid,
    printable,
    quality_grid,
    work_grid,
)

if TYPE_CHECKING:  # numpy and torch stay out
    from ffn_fusion.analysis.evidence import Evidence, Part
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.latency.sub_block_costs import SubBlocks
    from ffn_fusion.latency.timing import Latency

__all__ = [
    "block_diagram",
    "importance_table",
    "inspect_table",
    "latency_table",
    "plan_table",
    "quality_table",
    "reverse_order_table",
    "sub_block_table",
    "work_table",
]

_FELT = "prefill: time to the first token; decode: time of one step, which is that of each token behind it"
_SHORTEST_NAME = 8  # characters; models' names never give way to numbers
_MODEL_STYLES = {"pruned": "yellow", "fused": "bold blue", "distilled": "bold green"}


def plan_table(blueprint: Blueprint) -> Table:
    """One row per child block that differs from the parent."""
    grid = plan_grid(blueprint)
    table = table_of(grid)
    if not grid.rows:
        table.caption = "the child is the parent: nothing is changed"
    return table


def quality_table(quality: Quality) -> Table:
    """Every text one after the other; errors are standard errors over windows."""
    grids = [(scores.text, quality_grid(scores)) for scores in quality.texts]
    table = _empty(grids[0][1].columns, words=1)
    for text, grid in grids:
        _headed(table, text, grid.rows)
    return table


def latency_table(latency: Latency) -> Table:
    """Every setting and model. The caption names the machine: timings mean nothing without it."""
    grid = latency_grid(latency)
    columns = tuple(name.replace("speed over ", "over\n") for name in grid.columns)  # narrow: 80 characters are few
    table = _by_setting(replace(grid, columns=columns))
    table.caption = Text(f"{latency_place(latency)}; over: how many times as fast; {_FELT}")
    return table


def work_table(latency: Latency) -> Table | None:
    """What each run has to move and to compute; None where that wasn't counted."""
    grid = work_grid(latency)
    if grid is None:
        return None
    table = _by_setting(grid)
    table.caption = Text("bytes and FLOPs of a prefill, or of a decode step: weights once, KV cache read and written")
    return table


def sub_block_table(found: SubBlocks, models: Mapping[str, ModelSpec]) -> Table:
    """Every setting and shape, and what they add up to in each model."""
    table = _by_setting(sub_block_grid(found, models))
    table.caption = Text(sub_block_place(found) + "; norm and residual sum included; a head looks at the last token")
    return table


def _by_setting(grid: Grid) -> Table:
    """The first column, which names the setting, as headings."""
    table = _empty(grid.columns[1:], words=1)
    table.columns[0].min_width = _SHORTEST_NAME
    starts = sorted({0, *grid.sections})
    for start, end in zip(starts, [*starts[1:], len(grid.rows)], strict=True):
        _headed(table, grid.rows[start][0], [row[1:] for row in grid.rows[start:end]])
    return table


def importance_table(evidence: Evidence, top: int | None = 10, part: Part = "attention") -> Table:
    """The ``top`` sub-blocks of one part that matter least, each dropped alone; ``None`` for all of them."""
    table = table_of(importance_grid(evidence, top, part))
    gone = f"{ONE_OF[part]} dropped at a time, against the parent (loss {evidence.parent_loss:.4f})"
    repaired = any(row.repaired for row in evidence.removals if row.part == part)
    how = "; repaired: the block's FFN solved anew, judged on windows that it wasn't solved on" if repaired else ""
    table.caption = Text(f"{gone}; {_means(evidence)}{how}")
    return table


def reverse_order_table(evidence: Evidence) -> Table:
    """Every run tested: without its attentions, its FFNs in order, in reversed order, and fused."""
    table = table_of(reverse_order_grid(evidence))
    forms = "a run's attentions dropped, its FFNs in order, in reversed order, and fused"
    table.caption = Text(f"{forms}: KL from the parent; {_means(evidence)}")
    return table


def _means(evidence: Evidence) -> str:
    return f"means over {evidence.calibration.tokens:,} tokens, ± standard error over windows"


def inspect_table(name: str, spec: ModelSpec, dtype: str, element_size: int) -> Table:
    """What a model is made of: alike consecutive blocks in one row, parameters and KV bytes summed below.

    Args:
        dtype: what the weights are stored as, as it's shown.
        element_size: its bytes; the KV cache is taken to hold the same.
    """
    columns = ("blocks", "attention", "FFN", "parameters a block", "KV bytes a token")
    table = _empty(columns, words=3)
    table.title = Text(f"{printable(name)} · {spec.family} · {dtype} · hidden size {spec.hidden_size:,}")
    start = 0
    for block, alike in groupby(spec.blocks):
        end = start + len(list(alike))
        kv = 2 * block.attention.kv_heads * spec.head_dim * element_size if block.attention else 0
        table.add_row(
            format_blocks(range(start, end)),
            _attention(spec, block),
            _ffn(block),
            f"{_block_parameters(spec, block):,}",
            f"{kv:,}" if kv else NOTHING,
        )
        start = end
    table.add_section()
    total = _parameters(model_tensors(spec))
    outer = total - sum(_block_parameters(spec, block) for block in spec.blocks)
    head = "head tied" if spec.tied else "head"
    table.add_row("outside", "embedding, final norm", head, f"{outer:,}", NOTHING)
    cache = f"{spec.kv_bytes_per_token(element_size):,}"
    table.add_row(f"all {start}", "", "", f"{total:,}", cache, style="bold")
    size = byte_count(total * element_size)
    table.caption = Text(f"{count(total)} parameters, {size} in {dtype}; vocabulary {spec.vocab_size:,}")
    return table


def _attention(spec: ModelSpec, block: BlockSpec) -> str:
    if block.attention is None:
        return "none"
    if block.attention.kind == "linear":
        return "linear"
    return f"{spec.heads} heads, {block.attention.kv_heads} KV heads"


def _ffn(block: BlockSpec) -> str:
    if block.ffn is None:
        return "none"
    return "linear" if block.ffn.kind == "linear" else f"{block.ffn.width:,} wide"


def _block_parameters(spec: ModelSpec, block: BlockSpec) -> int:
    attention = dict(attention_tensors(spec, block.attention)) if block.attention else {}
    return _parameters(attention) + _parameters(dict(ffn_tensors(spec, block.ffn)) if block.ffn else {})


def _parameters(tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in tensors.values())


def _empty(columns: Sequence[str], words: int) -> Table:
    """A table without rows. Numbers never wrap (half a number is worse than a narrow column of words)."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        header_style="bold",
        caption_justify="left",
        title_justify="left",
    )
    for place, column in enumerate(columns):
        is_word = place < words
        table.add_column(
            column if is_word else _two_lines(column),
            justify="left" if is_word else "right",
            no_wrap=not is_word,
            vertical="top",
        )
    return table


def _two_lines(header: str) -> str:
    """``"KL from parent"`` -> two lines of about the same length, so that tables fit 80 columns."""
    if len(header) <= 10 or " " not in header:
        return header
    breaks = [i for i, char in enumerate(header) if char == " "]
    middle = min(breaks, key=lambda i: max(i, len(header) - i))
    return header[:middle] + "\n" + header[middle + 1 :]


def table_of(grid: Grid) -> Table:
    table = _empty(grid.columns, grid.words)
    for row in grid.rows:
        table.add_row(*_cells(row))
    return table


def _headed(table: Table, heading: str, rows: Iterable[Sequence[str]]) -> None:
    """Rows of models, indented under a line that says what they were measured on."""
    table.add_row(Text(printable(heading), style="bold"))
    for model, *numbers in rows:
        table.add_row(*_cells((f"  {model}", *numbers)), style=_MODEL_STYLES.get(model, ""))
    table.add_section()


def _cells(row: Sequence[str]) -> list[Text]:
    return [Text(cell) for cell in row]  # Text, not str: names of others may hold [markup]
