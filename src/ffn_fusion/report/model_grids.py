"""What models are made of: a parent's blocks, what a blueprint changes, what it saves, and which engines load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.families.layout import model_tensors, sub_block_parameters
from ffn_fusion.families.spec import BlockSpec, ModelSpec
from ffn_fusion.report.formats import byte_count, change, count, printable
from ffn_fusion.report.grid import Column, Grid, Tone, words

if TYPE_CHECKING:
    from ffn_fusion.portability.rule import EngineCheck, Verdict


def sequential_steps(blueprint: Blueprint) -> tuple[int, int]:
    """Sub-blocks that are computed one after the other: (parent, child)."""
    parent = sum((block.attention is not None) + (block.ffn is not None) for block in blueprint.parent.blocks)
    child = sum(block.attention.present + block.ffn.present for block in blueprint.blocks)
    return parent, child


# ---- the blueprint


def plan_grid(blueprint: Blueprint) -> Grid:
    """A row for each child block that differs from its parent block."""
    identity = Blueprint.identity(blueprint.parent).blocks
    numbered, number = [], 0
    for block in blueprint.blocks:
        if block != identity[block.parent_blocks[0]]:
            numbered.append((None if block.empty else number, block))
        number += not block.empty
    return Grid.of(
        numbered,
        (words("child block"), lambda pair: pair[0]),
        (words("parent blocks"), lambda pair: _parent_blocks(pair[1])),
        (words("attention"), lambda pair: _attention(blueprint, pair[1])),
        (words("FFN"), lambda pair: _ffn(blueprint, pair[1])[0]),
        (Column("FFN width", str), lambda pair: _ffn(blueprint, pair[1])[1]),
        notes=[] if numbered else ["Nothing is changed: the child is the parent."],
    )


def _parent_blocks(block: Block) -> str:
    first, last = block.parent_blocks
    return format_blocks(range(first, last + 1))


def _attention(blueprint: Blueprint, block: Block) -> str:
    first, last = block.parent_blocks
    had = [i for i in range(first, last + 1) if blueprint.parent.blocks[i].attention]
    gone = [i for i in had if i not in block.attention.sources]
    if gone == had:
        return "dropped" if had else "none in the parent"
    kind = block.attention
    made = kind.fate
    if kind.changes:
        made = ", ".join(filter(None, kind.cells("attention", blueprint.parent.had("attention", kind.sources))))
    elif gone:
        made += f" ({format_blocks(kind.sources)})"
    return f"{made}, dropped ({format_blocks(gone)})" if gone else made


def _ffn(blueprint: Blueprint, block: Block) -> tuple[str, str | None]:
    """What became of the FFN, and its width."""
    what, width = block.ffn.cells("ffn", blueprint.parent.had("ffn", block.ffn.sources))
    return what, width or None


_COSTS = {
    "parameters": ("parameters", count),
    "bytes": ("weights on disk", byte_count),
    "kv_bytes_per_token": ("KV cache per token", byte_count),
    "sequential_steps": ("sub-blocks in sequence", count),
}


def costs_grid(costs: Mapping[str, tuple[float, float]]) -> Grid:
    """What parent and child cost to hold and to run; ``costs`` as in ``ReportData``."""
    rows = []
    for name, (parent, child) in costs.items():
        label, form = _COSTS.get(name, (name.replace("_", " "), count))
        rows.append((label, form(parent), form(child), change(child / parent - 1, 1) if parent else None))
    return Grid.of(
        rows,
        (words(""), lambda row: row[0]),
        *((Column(name, str), lambda row, n=n: row[n]) for n, name in enumerate(("parent", "child", "change"), 1)),
    )


# ---- a parent


@dataclass(frozen=True)
class _Alike:
    """Consecutive blocks of one shape; ``parameters`` and ``kv_bytes`` of each."""

    blocks: str
    attention: str
    ffn: str
    parameters: int
    kv_bytes: int | None
    last: bool = False


def inspect_grid(name: str, spec: ModelSpec, dtype: str, element_size: int) -> Grid:
    """What a model is made of: consecutive blocks that are alike share a row, with sums below.

    Args:
        dtype: what the weights are stored as, as it is shown.
        element_size: its bytes; the KV cache is taken to hold the same.
    """
    rows, start = [], 0
    for block, alike in groupby(spec.blocks):
        end = start + len(list(alike))
        kv = 2 * block.attention.kv_heads * spec.head_dim * element_size if block.attention else 0
        blocks, parameters = format_blocks(range(start, end)), _block_parameters(spec, block)
        rows.append(_Alike(blocks, _spec_attention(block), _spec_ffn(block), parameters, kv or None))
        start = end
    total = _parameters(model_tensors(spec))
    outer = total - sum(_block_parameters(spec, block) for block in spec.blocks)
    head = "tied head" if spec.tied else "head"
    rows.append(_Alike("outside", "embedding, final norm", head, outer, None))
    rows.append(_Alike(f"all {start}", "", "", total, spec.kv_bytes_per_token(element_size), last=True))
    return Grid.of(
        rows,
        (words("blocks"), lambda row: row.blocks),
        (words("attention"), lambda row: row.attention),
        (words("FFN"), lambda row: row.ffn),
        (Column("parameters", unit="per block"), lambda row: row.parameters),
        (Column("KV cache", unit="bytes/token"), lambda row: row.kv_bytes),
        rule=lambda row: row.blocks == "outside",
        tone=lambda row: "marked" if row.last else "",
        title=f"{printable(name)} · {spec.family} · {dtype} · hidden size {spec.hidden_size:,}",
        notes=[
            f"{count(total)} parameters, {byte_count(total * element_size)} in {dtype}; "
            f"vocabulary of {spec.vocab_size:,} tokens."
        ],
    )


def _spec_attention(block: BlockSpec) -> str:
    if block.attention is None:
        return "none"
    if block.attention.kind == "linear":
        return "linear"
    return f"{block.attention.heads} heads, {block.attention.kv_heads} KV heads"


def _spec_ffn(block: BlockSpec) -> str:
    if block.ffn is None:
        return "none"
    return "linear" if block.ffn.kind == "linear" else f"{block.ffn.width:,} wide"


def _block_parameters(spec: ModelSpec, block: BlockSpec) -> int:
    return sub_block_parameters(spec, block.attention) + sub_block_parameters(spec, block.ffn)


def _parameters(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in tensors.values())


# ---- engines


_VERDICTS: dict[Verdict, tuple[Tone, str]] = {
    "loads": ("good", "loads in"),
    "loads after --fix": ("fair", "after check --fix in"),
    "cannot": ("bad", "not in"),
}
"""How a row of each verdict stands out, and what is said before the engines that share it."""


def engines_grid(found: Sequence[EngineCheck]) -> Grid:
    """A row for each engine and reason; blocks that share a reason share the row."""
    rows = [
        (check, n == 0, blocks, why) for check in found for n, (blocks, why) in enumerate(_reasons(check) or [("", "")])
    ]
    return Grid.of(
        rows,
        (words("engine"), lambda row: row[0].engine if row[1] else ""),
        (words("verdict"), lambda row: row[0].verdict if row[1] else ""),
        (words("blocks"), lambda row: row[2]),
        (words("why"), lambda row: row[3]),
        tone=lambda row: _VERDICTS[row[0].verdict][0],
    )


def _reasons(check: EngineCheck) -> Iterable[tuple[str, str]]:
    """(blocks, why) for each rule that is broken."""
    found = []
    for _, same in groupby(check.problems, key=lambda problem: problem.rule):
        problems = list(same)
        blocks = [problem.block for problem in problems if problem.block is not None]
        fixable = "" if problems[0].fixable else " (can't be rewritten)"
        found.append((format_blocks(blocks) if blocks else "", problems[0].reason + fixable))
    return found


def engines_line(found: Sequence[EngineCheck]) -> str:
    """The engines that load a child, those that load it after ``check --fix``, and those that can't, on one line."""
    shared: dict[Verdict, list[str]] = {}
    for row in found:
        shared.setdefault(row.verdict, []).append(row.engine)
    return "; ".join(f"{said} {', '.join(shared[name])}" for name, (_, said) in _VERDICTS.items() if name in shared)
